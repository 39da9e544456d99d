//! The derive macro `CacheKey` of the crate tidegate.
//!
//! tidegate re-exports the macro under its feature `derive`, and documents it at the trait
//! `CacheKey`.

use proc_macro::TokenStream;
use syn::DeriveInput;

mod attributes;
mod expand;

/// Implements `tidegate::CacheKey`. A struct writes its fields in their order. An enum writes the
/// name of the variant and then the variant's fields. Two values never have the same encoding.
///
/// Attributes:
///
/// - `#[cache_key(rename = "…")]`, on a variant or on a struct without fields: the text that is
///   written instead of the name.
/// - `#[cache_key(crate = "…")]`, on the type: the path of the crate tidegate.
/// - `#[cache_key(bound = "…")]`, on the type: the bounds of the implementation, instead of
///   `T: CacheKey` for each type parameter.
#[proc_macro_derive(CacheKey, attributes(cache_key))]
pub fn derive_cache_key(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand::expand(&input)
        .unwrap_or_else(|error| error.into_compile_error())
        .into()
}
