//! `#[derive(CacheKey)]` for the crate tidegate, which re-exports it (feature `derive`) and documents it
//! at its trait `CacheKey`.

use proc_macro::TokenStream;
use syn::DeriveInput;

mod attributes;
mod expand;

/// Implements `tidegate::CacheKey`: a struct writes its fields in their order, an enum the name of its
/// variant and then its fields. Two values never have the same encoding.
///
/// Attributes: `#[cache_key(rename = "…")]` on a variant, or on a struct without fields, writes this
/// instead of the name; on the type `#[cache_key(crate = "…")]` is where tidegate is found, and
/// `#[cache_key(bound = "…")]` stands in the place of `T: CacheKey` for each type parameter.
#[proc_macro_derive(CacheKey, attributes(cache_key))]
pub fn derive_cache_key(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand::expand(&input)
        .unwrap_or_else(|refused| refused.into_compile_error())
        .into()
}
