//! The code generator: from the definition of a type to its `impl CacheKey`.
//!
//! No two values of a type share an encoding, for these reasons:
//!
//! - Every `CacheKey` writes a sequence of parts, and `KeyBuf` separates the parts.
//! - The trait requires that no sequence is the beginning of another one (a prefix code).
//! - A struct writes all its fields in one order. A concatenation of prefix codes is a prefix code.
//! - An enum writes its variant's name first, and no two variants have the same name.
//! - A struct without fields has only one value.

use std::collections::HashMap;

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Fields, GenericParam, Generics, Ident, LitStr,
    Path, Result, Variant, parse_quote,
};

use crate::attributes::{Attributes, Target};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    reject_lifetimes(&input.generics)?;
    let attributes = Attributes::parse(&input.attrs, target_of(&input.data))?;
    let krate = attributes.krate.clone();
    let krate = krate.unwrap_or_else(|| parse_quote!(::tidegate));
    let name = &input.ident;
    let body = match &input.data {
        Data::Struct(data) => {
            let part = data
                .fields
                .is_empty()
                .then(|| encoded_name(name, &attributes));
            let arm = match_arm(&krate, &quote!(Self), part.as_ref(), &data.fields)?;
            quote!(match self { #arm })
        }
        Data::Enum(data) => match_variants(&krate, data)?,
        Data::Union(data) => {
            let why = "a union does not say which of its fields it holds: make it an enum";
            return Err(Error::new(data.union_token.span, why));
        }
    };
    let generics = with_bounds(&input.generics, &krate, attributes);
    let key = hygienic_ident("__key");
    let (parameters, arguments, bounds) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #parameters #krate::CacheKey for #name #arguments #bounds {
            fn encode(&self, #key: &mut #krate::KeyBuf) {
                #body
            }
        }
    })
}

fn target_of(data: &Data) -> Target {
    match data {
        Data::Struct(data) if data.fields.is_empty() => Target::FieldlessStruct,
        _ => Target::Type,
    }
}

fn reject_lifetimes(generics: &Generics) -> Result<()> {
    let Some(lifetime) = generics.lifetimes().next() else {
        return Ok(());
    };
    let why = "a cache key owns its parts, for it outlives the call that it came with: without the \
               lifetime, with `String` for `&str` (or `Arc<str>`, which is cheap to clone)";
    Err(Error::new(lifetime.lifetime.span(), why))
}

/// The part that stands for the name of a variant or of a struct without fields.
fn encoded_name(name: &Ident, attributes: &Attributes) -> LitStr {
    let renamed = attributes.rename.clone();
    renamed.unwrap_or_else(|| LitStr::new(&name.unraw().to_string(), name.span()))
}

fn match_variants(krate: &Path, data: &DataEnum) -> Result<TokenStream> {
    if data.variants.is_empty() {
        return Ok(quote!(match *self {}));
    }
    let mut names = HashMap::new();
    let mut arms = Vec::with_capacity(data.variants.len());
    let mut errors: Option<Error> = None;
    for variant in &data.variants {
        match variant_arm(krate, variant, &mut names) {
            Ok(arm) => arms.push(arm),
            Err(error) => match &mut errors {
                Some(first) => first.combine(error),
                None => errors = Some(error),
            },
        }
    }
    match errors {
        Some(errors) => Err(errors),
        None => Ok(quote!(match self { #(#arms)* })),
    }
}

fn variant_arm(
    krate: &Path,
    variant: &Variant,
    names: &mut HashMap<String, Ident>,
) -> Result<TokenStream> {
    let ident = &variant.ident;
    let attributes = Attributes::parse(&variant.attrs, Target::Variant)?;
    let encoded = encoded_name(ident, &attributes);
    if let Some(other) = names.insert(encoded.value(), ident.clone()) {
        let why = format!(
            "`{other}` is written {:?} too: two variants would share their entries",
            encoded.value()
        );
        return Err(Error::new(encoded.span(), why));
    }
    match_arm(
        krate,
        &quote!(Self::#ident),
        Some(&encoded),
        &variant.fields,
    )
}

/// One arm of the `match` over `self`: it encodes the name, if one is given, and then the fields.
fn match_arm(
    krate: &Path,
    constructor: &TokenStream,
    name: Option<&LitStr>,
    fields: &Fields,
) -> Result<TokenStream> {
    let key = hygienic_ident("__key");
    let mut patterns = Vec::with_capacity(fields.len());
    let mut parts = Vec::with_capacity(fields.len());
    for (at, field) in fields.iter().enumerate() {
        check_field_attributes(&field.attrs)?;
        let part = hygienic_ident(&format!("__part{at}"));
        let member = match &field.ident {
            Some(field) => quote!(#field),
            None => {
                let index = syn::Index::from(at);
                quote!(#index)
            }
        };
        patterns.push(quote!(#member: #part));
        // With this span the compiler reports a field type that is no `CacheKey` at the field's
        // type.
        let at = field.ty.span().resolved_at(Span::mixed_site());
        parts.push(quote_spanned! {at=> #krate::CacheKey::encode(#part, #key); });
    }
    let name = name.map(|name| quote!(#key.push_str(#name);));
    Ok(quote! {
        #constructor { #(#patterns),* } => { #name #(#parts)* }
    })
}

/// A generated identifier. It never refers to an item of the user, not even where a macro wrote the
/// type.
fn hygienic_ident(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

fn check_field_attributes(attributes: &[Attribute]) -> Result<()> {
    Attributes::parse(attributes, Target::Field).map(drop)
}

/// The generics with the bounds under which the type is a key: those of `bound`, or `T: CacheKey`
/// for each type parameter.
fn with_bounds(generics: &Generics, krate: &Path, attributes: Attributes) -> Generics {
    let mut generics = generics.clone();
    if let Some(bound) = attributes.bound {
        generics.make_where_clause().predicates.extend(bound);
        return generics;
    }
    for parameter in &mut generics.params {
        if let GenericParam::Type(parameter) = parameter {
            parameter.bounds.push(parse_quote!(#krate::CacheKey));
        }
    }
    generics
}
