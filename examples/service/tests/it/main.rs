//! Tests of the whole service: over HTTP, with a real redis-server, and in a real browser.

mod browser;
mod dashboard;
mod page;
mod routes;
mod support;
