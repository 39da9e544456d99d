//! The command line. Its doc comments are the text that `--help` prints.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Looks into what tidegate keeps in Redis, and invalidates it so that every process is told.
///
/// Keys are given as they stand in Redis behind `prefix:name:`, for instance `42` or `berlin,7`, or
/// whole, `tidegate:users:42`; then the name need not be given.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  tidegate-inspect --name users key 42             what is under users' key 42, and who loads it
  tidegate-inspect key tidegate:users:42           the same
  tidegate-inspect --name prices key --part a,b    the key whose only part is `a,b`, that is a%2Cb
  tidegate-inspect --name users leases             who loads, and whether somebody waits for it
  tidegate-inspect --name users top --limit 10     the entries that it would cost most to lose
  tidegate-inspect watch                           what is said on the buses of all caches
  tidegate-inspect --name users invalidate --tag team:7

Only `invalidate` changes anything. A URL with a password is better given in TIDEGATE_URL: other users of the
machine can read arguments. No output repeats it.

Exit codes:
  0  done
  1  nothing lies under the key
  2  the command line makes no sense
  3  Redis cannot be reached, or refuses
  4  what lies under the key is no record that this version reads";

#[derive(Args, Debug)]
pub(crate) struct Target {
    /// Where Redis is: redis://, rediss:// (TLS), redis-cluster://, redis-sentinel://,
    /// redis+unix://
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_URL",
        hide_env_values = true,
        hide_default_value = true,
        default_value = "redis://127.0.0.1:6379"
    )]
    pub(crate) url: String,
    /// What every key begins with
    #[arg(long, global = true, default_value = "tidegate")]
    pub(crate) prefix: String,
    /// The name of the cache
    #[arg(long, global = true)]
    pub(crate) name: Option<String>,
    /// JSON instead of tables; one object, with `watch` one a line. Times are in milliseconds
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How long to wait for the answer to one command, in milliseconds
    #[arg(long, global = true, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
}

impl Target {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What is under a key: the record, its freshness, and who refreshes it
    Key(Key),
    /// Leases: which keys are loaded just now, for how long, and whether another process waits
    Leases(Scan),
    /// What was invalidated as a whole: era, marks, and the marks of tags
    Marks {
        /// The mark at which this tag was last invalidated; can be repeated
        #[arg(long)]
        tag: Vec<String>,
    },
    /// The entries that it would cost most to lose: by what their load costs, times their size
    Top {
        /// So many entries
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        scan: Scan,
    },
    /// What is said on the invalidation bus, from now on; of every cache, unless one is named
    Watch {
        /// End after so many messages
        #[arg(long)]
        count: Option<u64>,
        /// End after so many seconds
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Drop keys, everything with a tag, or everything; every process hears of it
    Invalidate(Invalidate),
}

#[derive(Args, Debug)]
pub(crate) struct Key {
    /// The key as it stands in Redis, for instance `berlin,7`
    #[arg(required_unless_present = "part", conflicts_with = "part")]
    pub(crate) key: Option<String>,
    /// A part of the key as the program has it; can be repeated
    #[arg(long)]
    pub(crate) part: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Scan {
    /// Look at so many keys of Redis at most, with SCAN; 0 for all
    #[arg(long, default_value_t = 100_000)]
    pub(crate) scan: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Invalidate {
    /// Keys as they stand in Redis
    #[arg(required_unless_present_any = ["part", "tag", "everything"])]
    pub(crate) keys: Vec<String>,
    /// A part of one more key as the program has it; can be repeated
    #[arg(long)]
    pub(crate) part: Vec<String>,
    /// A tag as the loader gives it; can be repeated
    #[arg(long)]
    pub(crate) tag: Vec<String>,
    /// Everything in the cache; asks for --yes
    #[arg(long, requires = "yes", conflicts_with_all = ["keys", "part", "tag"])]
    pub(crate) everything: bool,
    /// Yes, everything
    #[arg(long)]
    pub(crate) yes: bool,
    /// The `hold_off` of the cache in milliseconds, if its loader reads a replica: nothing is
    /// stored under the keys for so long
    #[arg(long, default_value_t = 0)]
    hold_off: u64,
}

impl Invalidate {
    pub(crate) fn hold_off(&self) -> Duration {
        Duration::from_millis(self.hold_off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }
}
