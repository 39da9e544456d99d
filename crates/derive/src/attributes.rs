//! The parser of `#[cache_key(…)]`: which attribute is allowed where, and the error for each other
//! one.

use syn::meta::ParseNestedMeta;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, Error, LitStr, Path, Result, Token, WherePredicate};

const SKIP_REJECTED: &str = "a part of a key cannot be skipped: two keys that differ in it would name one entry, \
                    and the value of one would be answered for the other";
const KNOWN_ATTRIBUTES: &str = "known are `rename = \"…\"` on a variant or on a struct without fields, and on the type \
                     `crate = \"…\"` and `bound = \"…\"`";

/// The item that an attribute stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A struct without fields: its name is encoded and can be renamed.
    FieldlessStruct,
    /// A struct with fields, or an enum.
    Type,
    Variant,
    Field,
}

/// The settings that the attributes of one item give.
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) rename: Option<LitStr>,
    pub(crate) krate: Option<Path>,
    pub(crate) bound: Option<Punctuated<WherePredicate, Token![,]>>,
}

impl Attributes {
    /// Parses every `#[cache_key(…)]` among the attributes of an item, and reports all errors at
    /// once.
    pub(crate) fn parse(attributes: &[Attribute], target: Target) -> Result<Self> {
        let mut parsed = Self::default();
        let mut errors: Option<Error> = None;
        for attribute in attributes {
            if !attribute.path().is_ident("cache_key") {
                continue;
            }
            if let Err(error) = attribute.parse_nested_meta(|meta| parsed.add(&meta, target)) {
                match &mut errors {
                    Some(first) => first.combine(error),
                    None => errors = Some(error),
                }
            }
        }
        errors.map_or(Ok(parsed), Err)
    }

    fn add(&mut self, meta: &ParseNestedMeta<'_>, target: Target) -> Result<()> {
        let on_type = matches!(target, Target::Type | Target::FieldlessStruct);
        if meta.path.is_ident("skip") {
            return Err(meta.error(SKIP_REJECTED));
        }
        if meta.path.is_ident("rename") {
            let name = parse_rename(meta, target)?;
            return reject_duplicate(meta, self.rename.replace(name));
        }
        if on_type && meta.path.is_ident("crate") {
            let path = parse_string(meta, Path::parse_mod_style, "the path to tidegate")?;
            return reject_duplicate(meta, self.krate.replace(path));
        }
        if on_type && meta.path.is_ident("bound") {
            let bounds = Punctuated::parse_terminated;
            let bound = parse_string(meta, bounds, "bounds such as `T: CacheKey`")?;
            return reject_duplicate(meta, self.bound.replace(bound));
        }
        Err(meta.error(format!("this says nothing here; {KNOWN_ATTRIBUTES}")))
    }
}

fn parse_rename(meta: &ParseNestedMeta<'_>, target: Target) -> Result<LitStr> {
    let why = match target {
        Target::FieldlessStruct | Target::Variant => {
            let name = string_literal(meta)?;
            if name.value().is_empty() {
                return Err(Error::new(name.span(), "a name has at least one character"));
            }
            return Ok(name);
        }
        Target::Type => "neither the name of an enum nor that of a struct with fields is written",
        Target::Field => "the names of fields are not written, only their values, in their order",
    };
    Err(meta.error(format!("nothing to rename: {why}")))
}

/// Parses the content of a string literal, as in `crate = "…"`.
fn parse_string<P: Parser>(
    meta: &ParseNestedMeta<'_>,
    parser: P,
    expected: &str,
) -> Result<P::Output> {
    let text = string_literal(meta)?;
    let error = |_| Error::new(text.span(), format!("this is not {expected}"));
    text.parse_with(parser).map_err(error)
}

fn string_literal(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let value = meta.value()?;
    let span = value.span();
    let error = |_| Error::new(span, "a text is wanted here: `\"…\"`");
    value.parse().map_err(error)
}

fn reject_duplicate<T>(meta: &ParseNestedMeta<'_>, previous: Option<T>) -> Result<()> {
    match previous {
        Some(_) => Err(meta.error("said twice")),
        None => Ok(()),
    }
}
