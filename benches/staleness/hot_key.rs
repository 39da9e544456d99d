pub(crate) const WORKER: &str = "--worker";
pub(crate) fn work(_: &[String]) -> Result<(), tidegate::BoxError> {
    Ok(())
}
pub(crate) fn run(_: u64, _: bool) -> Result<(), tidegate::BoxError> {
    Ok(())
}
