//! Nested loads: the flights whose loads a task runs in, so that a loader never waits for itself.

use std::sync::Arc;

tokio::task_local! {
    /// The flights whose loads this task runs in, outermost first. A loader must not wait for them.
    static NESTING: Nesting;
}

/// Flights, by their serial numbers. `None`: no flight, which is the usual case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nesting(Option<Arc<[u64]>>);

impl Nesting {
    pub(crate) fn serials(&self) -> &[u64] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl FromIterator<u64> for Nesting {
    fn from_iter<I: IntoIterator<Item = u64>>(serials: I) -> Self {
        Self(Some(serials.into_iter().collect()))
    }
}

/// The flights whose loads the calling task runs in.
pub(crate) fn current() -> Nesting {
    NESTING.try_with(Clone::clone).unwrap_or_default()
}

/// Runs a load. Its own look-ups are compared with these flights.
pub(crate) async fn within<T>(nesting: Nesting, loading: impl Future<Output = T>) -> T {
    NESTING.scope(nesting, loading).await
}
