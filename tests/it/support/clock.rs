//! Wrong wall clocks: a library that is preloaded into a process and shifts the time of day. It is
//! built with the C compiler that also links Rust programs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable with the seconds by which the clock of a process is ahead.
const AHEAD: &str = "TIDEGATE_CLOCK_AHEAD";

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long ahead(void) {
    const char *seconds = getenv("TIDEGATE_CLOCK_AHEAD");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) at->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Builds the library.
pub(crate) fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("libclock.so"));
    std::fs::write(&source, LIBRARY).expect("write the source");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(status.expect("a C compiler").success(), "cc failed");
    library
}

/// The environment of a process whose clock is this many seconds ahead, or behind.
pub(crate) fn ahead(library: &Path, seconds: i64) -> Vec<(&'static str, String)> {
    let library = library.to_str().expect("a plain path").to_owned();
    vec![("LD_PRELOAD", library), (AHEAD, seconds.to_string())]
}
