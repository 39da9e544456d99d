//! From a type to its `impl CacheKey`.
//!
//! Why no two values share an encoding. Every `CacheKey` writes a sequence of parts of which none is the
//! beginning of another's (the rule of the trait), and the `KeyBuf` keeps parts apart. Fields after one
//! another, always all of them in one order, keep that. An enum writes a part first that no other
//! variant writes. A struct without fields has one value.

use std::collections::HashMap;

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Fields, GenericParam, Generics, Ident, LitStr,
    Path, Result, Variant, parse_quote,
};

use crate::attributes::{Attributes, Place};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    refuse_lifetimes(&input.generics)?;
    let attributes = Attributes::read(&input.attrs, place_of(&input.data))?;
    let krate = attributes.krate.clone();
    let krate = krate.unwrap_or_else(|| parse_quote!(::tidegate));
    let name = &input.ident;
    let body = match &input.data {
        Data::Struct(data) => {
            let written = data.fields.is_empty().then(|| written(name, &attributes));
            let arm = arm(&krate, &quote!(Self), written.as_ref(), &data.fields)?;
            quote!(match self { #arm })
        }
        Data::Enum(data) => variants(&krate, data)?,
        Data::Union(data) => {
            let why = "a union does not say which of its fields it holds: make it an enum";
            return Err(Error::new(data.union_token.span, why));
        }
    };
    let generics = bounded(&input.generics, &krate, attributes);
    let key = own("__key");
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

fn place_of(data: &Data) -> Place {
    match data {
        Data::Struct(data) if data.fields.is_empty() => Place::Nameable,
        _ => Place::Type,
    }
}

fn refuse_lifetimes(generics: &Generics) -> Result<()> {
    let Some(borrows) = generics.lifetimes().next() else {
        return Ok(());
    };
    let why = "a cache key owns its parts, for it outlives the call that it came with: without the \
               lifetime, with `String` for `&str` (or `Arc<str>`, which is cheap to clone)";
    Err(Error::new(borrows.lifetime.span(), why))
}

/// What is written for a name.
fn written(name: &Ident, attributes: &Attributes) -> LitStr {
    let renamed = attributes.rename.clone();
    renamed.unwrap_or_else(|| LitStr::new(&name.unraw().to_string(), name.span()))
}

fn variants(krate: &Path, data: &DataEnum) -> Result<TokenStream> {
    if data.variants.is_empty() {
        return Ok(quote!(match *self {}));
    }
    let mut names = HashMap::new();
    let mut arms = Vec::with_capacity(data.variants.len());
    let mut refused: Option<Error> = None;
    for variant in &data.variants {
        match variant_arm(krate, variant, &mut names) {
            Ok(arm) => arms.push(arm),
            Err(error) => match &mut refused {
                Some(first) => first.combine(error),
                None => refused = Some(error),
            },
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(quote!(match self { #(#arms)* })),
    }
}

fn variant_arm(
    krate: &Path,
    variant: &Variant,
    names: &mut HashMap<String, Ident>,
) -> Result<TokenStream> {
    let ident = &variant.ident;
    let attributes = Attributes::read(&variant.attrs, Place::Variant)?;
    let written = written(ident, &attributes);
    if let Some(other) = names.insert(written.value(), ident.clone()) {
        let why = format!(
            "`{other}` is written {:?} too: two variants would share their entries",
            written.value()
        );
        return Err(Error::new(written.span(), why));
    }
    arm(
        krate,
        &quote!(Self::#ident),
        Some(&written),
        &variant.fields,
    )
}

/// One arm of the `match`: the name, if it is written, and then the fields.
fn arm(
    krate: &Path,
    constructor: &TokenStream,
    written: Option<&LitStr>,
    fields: &Fields,
) -> Result<TokenStream> {
    let key = own("__key");
    let mut patterns = Vec::with_capacity(fields.len());
    let mut parts = Vec::with_capacity(fields.len());
    for (at, field) in fields.iter().enumerate() {
        refuse_on_field(&field.attrs)?;
        let part = own(&format!("__part{at}"));
        let member = match &field.ident {
            Some(name) => quote!(#name),
            None => {
                let index = syn::Index::from(at);
                quote!(#index)
            }
        };
        patterns.push(quote!(#member: #part));
        // The error about a type that is no key stands at that type.
        let at = field.ty.span().resolved_at(Span::mixed_site());
        parts.push(quote_spanned! {at=> #krate::CacheKey::encode(#part, #key); });
    }
    let name = written.map(|name| quote!(#key.push_str(#name);));
    Ok(quote! {
        #constructor { #(#patterns),* } => { #name #(#parts)* }
    })
}

/// A name of our own making: none of the user's is meant, also where a macro wrote the type.
fn own(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

fn refuse_on_field(attributes: &[Attribute]) -> Result<()> {
    Attributes::read(attributes, Place::Field).map(drop)
}

/// With what the type parameters must be for the whole to be a key.
fn bounded(generics: &Generics, krate: &Path, attributes: Attributes) -> Generics {
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
