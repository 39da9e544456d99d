//! `#[cache_key(…)]`: what may be said where, and what is said to who says something else.

use syn::meta::ParseNestedMeta;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, Error, LitStr, Path, Result, Token, WherePredicate};

const SKIP: &str = "a part of a key cannot be skipped: two keys that differ in it would name one entry, \
                    and the value of one would be answered for the other";
const KNOWN: &str = "known are `rename = \"…\"` on a variant or on a struct without fields, and on the type \
                     `crate = \"…\"` and `bound = \"…\"`";

/// What an attribute stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A struct that writes its name: it has no fields.
    Nameable,
    /// A struct with fields, or an enum.
    Type,
    Variant,
    Field,
}

#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) rename: Option<LitStr>,
    pub(crate) krate: Option<Path>,
    pub(crate) bound: Option<Punctuated<WherePredicate, Token![,]>>,
}

impl Attributes {
    /// Reads every `#[cache_key(…)]` among the attributes of a thing.
    pub(crate) fn read(attributes: &[Attribute], place: Place) -> Result<Self> {
        let mut read = Self::default();
        let mut refused: Option<Error> = None;
        for attribute in attributes {
            if !attribute.path().is_ident("cache_key") {
                continue;
            }
            if let Err(error) = attribute.parse_nested_meta(|meta| read.add(&meta, place)) {
                match &mut refused {
                    Some(first) => first.combine(error),
                    None => refused = Some(error),
                }
            }
        }
        refused.map_or(Ok(read), Err)
    }

    fn add(&mut self, meta: &ParseNestedMeta<'_>, place: Place) -> Result<()> {
        let on_type = matches!(place, Place::Type | Place::Nameable);
        if meta.path.is_ident("skip") {
            return Err(meta.error(SKIP));
        }
        if meta.path.is_ident("rename") {
            let name = rename(meta, place)?;
            return once(meta, self.rename.replace(name));
        }
        if on_type && meta.path.is_ident("crate") {
            let path = parsed(meta, Path::parse_mod_style, "the path to tidegate")?;
            return once(meta, self.krate.replace(path));
        }
        if on_type && meta.path.is_ident("bound") {
            let bounds = Punctuated::parse_terminated;
            let bound = parsed(meta, bounds, "bounds such as `T: CacheKey`")?;
            return once(meta, self.bound.replace(bound));
        }
        Err(meta.error(format!("this says nothing here; {KNOWN}")))
    }
}

fn rename(meta: &ParseNestedMeta<'_>, place: Place) -> Result<LitStr> {
    let why = match place {
        Place::Nameable | Place::Variant => {
            let name = text(meta)?;
            if name.value().is_empty() {
                return Err(Error::new(name.span(), "a name has at least one character"));
            }
            return Ok(name);
        }
        Place::Type => "neither the name of an enum nor that of a struct with fields is written",
        Place::Field => "the names of fields are not written, only their values, in their order",
    };
    Err(meta.error(format!("nothing to rename: {why}")))
}

/// What is written within quotation marks.
fn parsed<P: Parser>(meta: &ParseNestedMeta<'_>, parser: P, what: &str) -> Result<P::Output> {
    let text = text(meta)?;
    let wrong = |_| Error::new(text.span(), format!("this is not {what}"));
    text.parse_with(parser).map_err(wrong)
}

fn text(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let value = meta.value()?;
    let span = value.span();
    let wrong = |_| Error::new(span, "a text is wanted here: `\"…\"`");
    value.parse().map_err(wrong)
}

fn once<T>(meta: &ParseNestedMeta<'_>, before: Option<T>) -> Result<()> {
    match before {
        Some(_) => Err(meta.error("said twice")),
        None => Ok(()),
    }
}
