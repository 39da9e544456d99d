//! The routes of the service and their handlers.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, put};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate::{Channel, WriteError};

use crate::cache_status::CacheStatus;
use crate::database::{Product, Report, User};
use crate::error::ApiError;
use crate::{Shop, telemetry};

pub(crate) fn router(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/users/{id}", get(user).put(rename_user))
        .route("/products", get(products))
        .route("/products/{id}", get(product))
        .route("/products/{id}/price", put(price_product))
        .route("/reports/{days}", get(report))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(telemetry::observe))
        .with_state(shop)
}

/// The response to a read.
type Found<T> = Result<(CacheStatus, Json<T>), ApiError>;

async fn user(State(shop): State<Arc<Shop>>, Path(id): Path<i64>) -> Found<User> {
    let entry = shop.caches.users.get_entry(&id).await?;
    let entry = entry.ok_or(ApiError::NotFound("user"))?;
    let status = CacheStatus::new().entry("users", &entry);
    Ok((status, Json(User::clone(entry.value()))))
}

#[derive(Debug, Deserialize)]
struct Rename {
    name: String,
}

/// Renames a user. The write and the invalidation run in one task, which goes on when the client
/// disconnects.
async fn rename_user(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<i64>,
    Json(rename): Json<Rename>,
) -> Result<Json<Value>, ApiError> {
    if rename.name.is_empty() || rename.name.len() > 200 {
        let rule = "a name has from 1 to 200 bytes";
        return Err(ApiError::BadRequest(rule.to_owned()));
    }
    let database = shop.database.clone();
    let write = async move { database.rename_user(id, &rename.name).await };
    let written = shop.caches.users.invalidate_after(id, write).await;
    answer_write("user", written)
}

async fn product(State(shop): State<Arc<Shop>>, Path(id): Path<i64>) -> Found<Product> {
    let entry = shop.caches.products.get_entry(&id).await?;
    let entry = entry.ok_or(ApiError::NotFound("product"))?;
    let status = CacheStatus::new().entry("products", &entry);
    Ok((status, Json(Product::clone(entry.value()))))
}

#[derive(Debug, Deserialize)]
struct Price {
    cents: i64,
}

async fn price_product(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<i64>,
    Json(Price { cents }): Json<Price>,
) -> Result<Json<Value>, ApiError> {
    if cents < 0 {
        return Err(ApiError::BadRequest("a price is not negative".to_owned()));
    }
    let database = shop.database.clone();
    let write = async move { database.price_product(id, cents).await };
    let written = shop.caches.products.invalidate_after(id, write).await;
    answer_write("product", written)
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default = "first_page")]
    page: i64,
}

fn first_page() -> i64 {
    1
}

/// A page of the list. The first look-up reads the ids on the page, the second one all its
/// products.
async fn products(
    State(shop): State<Arc<Shop>>,
    Query(Page { page }): Query<Page>,
) -> Found<Vec<Product>> {
    if page < 1 {
        return Err(ApiError::BadRequest("pages begin with 1".to_owned()));
    }
    let ids = shop.caches.pages.get_entry(&page).await?;
    let ids = ids.ok_or(ApiError::NotFound("page"))?;
    let found = shop.caches.products.get_many_entries(ids.value()).await;
    // A product that was deleted since then is left out.
    let found: Vec<_> = found
        .into_iter()
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    let status = CacheStatus::new()
        .entry("pages", &ids)
        .entries("products", &found);
    let products = found.iter().map(|one| Product::clone(one.value()));
    Ok((status, Json(products.collect())))
}

async fn report(State(shop): State<Arc<Shop>>, Path(days): Path<i64>) -> Found<Report> {
    // Each number of days costs an entry and a slow query, so only three are allowed.
    if ![7, 30, 90].contains(&days) {
        let rule = "there are reports of 7, 30 and 90 days";
        return Err(ApiError::BadRequest(rule.to_owned()));
    }
    let entry = shop.caches.reports.get_entry(&days).await?;
    let entry = entry.ok_or(ApiError::NotFound("report"))?;
    let status = CacheStatus::new().entry("reports", &entry);
    Ok((status, Json(Report::clone(entry.value()))))
}

/// The health check. It answers 200 as long as the service answers requests, and that does not need
/// Redis. The body describes the state of the caches.
async fn health(State(shop): State<Arc<Shop>>) -> Json<Value> {
    let caches = shop.caches.health().map(|(name, health)| {
        let one = json!({
            "l2_reachable": health.l2_reachable,
            "channel": channel(health.channel),
            "pending_repairs": health.pending_repairs,
            "gaps": health.gaps,
            "denied": health.denied.as_deref(),
        });
        (name.to_owned(), one)
    });
    Json(json!({
        "shared_tier": shop.tier.kind(),
        "breaker_open": shop.events.is_breaker_open(),
        "caches": Value::Object(caches.into_iter().collect()),
    }))
}

async fn metrics(State(shop): State<Arc<Shop>>) -> String {
    shop.caches.publish_metrics();
    shop.tier.publish().await;
    telemetry::recorder().render()
}

pub(crate) fn channel(channel: Channel) -> &'static str {
    match channel {
        Channel::None => "none",
        Channel::Proven => "proven",
        Channel::Unproven => "unproven",
        _ => "down",
    }
}

/// The response to a write. `announced` is false if the shared tier did not confirm the
/// invalidation. The cache repeats it, and `guide::consistency` bounds how long other instances
/// answer the old value.
fn answer_write(
    what: &'static str,
    written: Result<bool, WriteError<sqlx::Error>>,
) -> Result<Json<Value>, ApiError> {
    let announced = match written {
        Ok(false) => return Err(ApiError::NotFound(what)),
        Ok(true) => true,
        Err(error) => {
            ApiError::of_write(error)?;
            false
        }
    };
    Ok(Json(json!({ "saved": true, "announced": announced })))
}
