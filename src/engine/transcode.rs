//! Records become entries, and values become records.
//!
//! A record of L2 is answered only if it is alive: neither its tags nor everything was invalidated
//! since its load began. What the messages have told is enough for that while the channel is proven.
//! Otherwise L2 is asked.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::core::Engine;
use super::flight::FoundEntry;
use super::remote::{RemoteKey, RemoteTier};
use crate::answer::Answer;
use crate::codec::{CodecError, RecordContext};
use crate::coherence::watermarks::{Learned, Liveness, Tags};
use crate::entry::{ForwardReason, Freshness, Provenance, Source};
use crate::erased::AnyValue;
use crate::error::{RemoteError, RemoteKind};
use crate::lifetime::Lifetime;
use crate::loader::Loaded;
use crate::protocol::record::{Baseline, Body, Header, Kind, MAX_TAGS, Malformed, Token};
use crate::protocol::request::{Advance, WatermarkRequest};
use crate::ttl;

/// See [`Engine::longest_hold`].
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// What a record of L2 says.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made")]
pub(super) enum Reading {
    /// An entry, fresh or not.
    Entry(FoundEntry, Header),
    /// A process loads it.
    Leased,
    /// A load of it has failed: no attempt for this long.
    Failed(Duration),
    /// The record of a newer version of the value's type: to be left alone.
    Newer,
    /// It was invalidated a moment ago, and nothing is to be stored yet.
    HeldOff,
    /// Dead or unreadable: to be replaced. The number of loads that have failed in a row.
    Replace(u32),
}

/// What a record holds that is neither an entry nor the mark of a failed load.
enum NoEntry {
    Lease,
    HoldOff,
    /// The record of a newer version.
    Newer,
    Unreadable,
}

impl From<NoEntry> for Reading {
    fn from(held: NoEntry) -> Self {
        match held {
            NoEntry::Lease => Self::Leased,
            NoEntry::HoldOff => Self::HeldOff,
            NoEntry::Newer => Self::Newer,
            NoEntry::Unreadable => Self::Replace(0),
        }
    }
}

/// Why a record was not read.
enum Unread {
    Failed(RemoteError),
    /// L2 has to say whether it is alive. Its baseline and its tags.
    Doubtful(Baseline, Vec<u64>),
}

impl From<RemoteError> for Unread {
    fn from(error: RemoteError) -> Self {
        Self::Failed(error)
    }
}

/// What goes into the header of an entry's record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordFields<'a> {
    pub(super) token: Token,
    pub(super) baseline: Baseline,
    pub(super) fresh_for: Duration,
    pub(super) cost: Duration,
    pub(super) version: u64,
    pub(super) tags: &'a [u64],
}

impl RecordFields<'_> {
    /// The header with these fields. What concerns the payload stays.
    pub(super) fn header(&self, header: Header, created_ms: u64) -> Header {
        // A load that took less than a millisecond costs one: zero would be no cost at all.
        let cost_ms = ttl::millis(self.cost + Duration::from_micros(999));
        Header {
            token: self.token,
            created_ms,
            fresh_ms: ttl::millis(self.fresh_for),
            load_cost_ms: u32::try_from(cost_ms).unwrap_or(u32::MAX),
            baseline: self.baseline,
            version: self.version,
            ..header
        }
    }
}

/// A load that has ended, on its way to an entry.
pub(super) struct EndedLoad {
    pub(super) loaded: Loaded<AnyValue>,
    pub(super) cost: Duration,
    /// The watermark that was known before it began.
    pub(super) baseline: Baseline,
    pub(super) why: ForwardReason,
    pub(super) version_id: u64,
}

impl Engine {
    /// How long a mark in L2 is believed which says that a load failed: as long as any process of
    /// the fleet would hold off, whose settings may differ a little. A mark that says more is forged.
    pub(super) fn longest_hold(&self) -> Duration {
        ttl::backoff(self.config.error_backoff, u32::MAX).max(LONGEST_HOLD)
    }

    /// Sees to it that the watermarks are known: from the channel while it is proven, else from L2.
    pub(super) async fn know_watermarks(&self, remote: &RemoteTier) -> Result<(), RemoteError> {
        if self.watermarks.is_certain() && remote.channel.is_proven(Instant::now()) {
            return Ok(());
        }
        let asked = Box::pin(self.ask_watermarks(remote, Vec::new()));
        asked.await.map(drop)
    }

    /// Asks L2 for the watermarks. Answers the latest one that concerns the tags.
    pub(super) async fn ask_watermarks(
        &self,
        remote: &RemoteTier,
        tags: Vec<u64>,
    ) -> Result<u64, RemoteError> {
        let request = WatermarkRequest {
            advance: Advance::Nothing,
            known: self.watermarks.known().unwrap_or_default(),
            tags,
            publication: None,
        };
        let query = self.watermarks.begin_query();
        let answered = remote.tier.marks(&remote.watermarks_key, request).await;
        let (watermarks, latest) = self.tier(answered)?;
        self.watermarks.end_query(watermarks, query);
        if self.watermarks.learn(watermarks, false) == Learned::Everything {
            self.start_new_epoch();
        }
        Ok(latest)
    }

    /// Whether a record is alive, as far as that is known here. `ask`: the messages do not count.
    fn known_liveness(
        &self,
        remote: &RemoteTier,
        baseline: Baseline,
        tags: &[u64],
        ask: bool,
    ) -> Liveness {
        let proven = !ask && !tags.is_empty() && remote.channel.is_proven(Instant::now());
        self.watermarks
            .check_liveness(baseline, tags.iter().copied(), proven)
    }

    /// Whether a record is alive. L2 is asked, if that is not known here.
    async fn liveness(
        &self,
        remote: &RemoteTier,
        baseline: Baseline,
        tags: &[u64],
        ask: bool,
    ) -> Result<Liveness, RemoteError> {
        let known = || self.known_liveness(remote, baseline, tags, ask);
        let mut liveness = known();
        if matches!(liveness, Liveness::OtherIncarnation) {
            self.ask_watermarks(remote, Vec::new()).await?;
            liveness = known();
        }
        let Liveness::AskTags(of) = liveness else {
            return Ok(liveness);
        };
        let latest = self.ask_watermarks(remote, tags.to_vec()).await?;
        // An invalidation of everything meanwhile has dropped the watermarks of the tags.
        let none: [u64; 0] = [];
        let untagged = self
            .watermarks
            .check_liveness(baseline, none.into_iter(), true);
        let alive =
            latest <= baseline.watermark && of.hold() && matches!(untagged, Liveness::Alive(_));
        Ok(if alive {
            Liveness::Alive(Some(of))
        } else {
            Liveness::Dead
        })
    }

    /// What a record says. `ask`: L2 has to say whether it is alive.
    pub(super) async fn interpret(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        record: &Bytes,
        ask: bool,
    ) -> Result<Reading, RemoteError> {
        let known = |baseline, tags: &[u64]| self.known_liveness(remote, baseline, tags, ask);
        let (baseline, tags) = match self.decode_record(remote, remote_key, record, known) {
            Ok(reading) => return Ok(reading),
            Err(Unread::Failed(error)) => return Err(error),
            Err(Unread::Doubtful(baseline, tags)) => (baseline, tags),
        };
        let liveness = Box::pin(self.liveness(remote, baseline, &tags, ask)).await?;
        let liveness = match liveness {
            Liveness::Alive(tags) => Liveness::Alive(tags),
            Liveness::Dead | Liveness::OtherIncarnation | Liveness::AskTags(_) => Liveness::Dead,
        };
        match self.decode_record(remote, remote_key, record, |_, _| liveness) {
            Ok(reading) => Ok(reading),
            Err(Unread::Failed(error)) => Err(error),
            Err(Unread::Doubtful(..)) => Ok(Reading::Replace(0)),
        }
    }

    /// What a record says, if it is known whether it is alive.
    fn decode_record(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        record: &Bytes,
        liveness: impl FnOnce(Baseline, &[u64]) -> Liveness,
    ) -> Result<Reading, Unread> {
        let (header, body) = match self.parse_record(remote_key, record) {
            Ok(parsed) => parsed,
            Err(held) => return Ok(held.into()),
        };
        let tags: Vec<u64> = body.tags().collect();
        let tags = match liveness(header.baseline, &tags) {
            Liveness::Alive(tags) => tags,
            Liveness::Dead => return Ok(Reading::Replace(0)),
            Liveness::OtherIncarnation | Liveness::AskTags(_) => {
                return Err(Unread::Doubtful(header.baseline, tags));
            }
        };
        let now_ms = remote.now_ms()?;
        if header.kind == Kind::Failed {
            return Ok(self.failed_mark(&header, now_ms));
        }
        let now = Instant::now();
        let Some(lifetime) = lifetime_of(&header, now_ms, now) else {
            return Ok(Reading::Replace(0));
        };
        let value = match self.decode_value(remote, remote_key, &header, &body) {
            Ok(value) => value,
            Err(held) => return Ok(held.into()),
        };
        let age_ms = now_ms.saturating_sub(header.created_ms);
        let found = FoundEntry {
            answer: Answer {
                value,
                source: Source::L2,
                age: Duration::from_millis(age_ms),
                at: now,
                fresh_until: lifetime.fresh_until,
                freshness: lifetime.freshness(now),
                provenance: Provenance::FromTier,
                tags,
            },
            lifetime,
            of_l1: None,
            version_id: header.version_id(),
        };
        Ok(Reading::Entry(found, header))
    }

    fn unreadable(&self) -> NoEntry {
        self.stats.decode_failures.add();
        NoEntry::Unreadable
    }

    /// The header and the body of a record that holds an entry or a mark of a failed load. `Err`: it
    /// holds something else, or cannot be read.
    fn parse_record<'a>(
        &self,
        remote_key: &RemoteKey,
        record: &'a Bytes,
    ) -> Result<(Header, Body<'a>), NoEntry> {
        if record.len() > self.config.max_record_bytes {
            return Err(self.unreadable());
        }
        let (header, body) = match Header::parse(record, remote_key.hash) {
            Ok(parsed) => parsed,
            Err(Malformed::Damaged) => return Err(self.unreadable()),
            Err(Malformed::LaterFormat) => {
                self.stats.newer_records.add();
                return Err(NoEntry::Newer);
            }
        };
        match header.kind {
            Kind::Lease => Err(NoEntry::Lease),
            Kind::HoldOff => Err(NoEntry::HoldOff),
            Kind::Value if header.schema > self.config.schema_version => {
                self.stats.newer_records.add();
                Err(NoEntry::Newer)
            }
            Kind::Value | Kind::Negative | Kind::Failed => Ok((header, body)),
        }
    }

    /// The mark of a failed load.
    fn failed_mark(&self, header: &Header, now_ms: u64) -> Reading {
        let longest = ttl::millis(self.longest_hold());
        let from_later = header.created_ms > now_ms.saturating_add(longest);
        if from_later || header.fresh_ms > longest {
            return self.unreadable().into();
        }
        let age_ms = now_ms.saturating_sub(header.created_ms);
        let left = Duration::from_millis(header.fresh_ms.saturating_sub(age_ms));
        if left.is_zero() {
            Reading::Replace(header.load_cost_ms)
        } else {
            Reading::Failed(left)
        }
    }

    /// The value of an entry's record, or its absence.
    fn decode_value(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        header: &Header,
        body: &Body<'_>,
    ) -> Result<Option<AnyValue>, NoEntry> {
        if header.kind != Kind::Value {
            return Ok(None);
        }
        let schema = self.config.schema_version;
        if header.schema != schema || header.codec != remote.codec_id() {
            return Err(self.unreadable());
        }
        let fields = header.fields();
        let context = RecordContext::new(&remote_key.bytes, &fields, body.raw_tags);
        let value = remote.decode(body.payload, &context);
        value.map(Some).map_err(|_| self.unreadable())
    }

    /// Encodes a value, or an absence, into a record.
    pub(super) fn encode_record(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        value: Option<&AnyValue>,
        created_ms: u64,
        fields: RecordFields<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        let kind = if value.is_some() {
            Kind::Value
        } else {
            Kind::Negative
        };
        let plain = Header::plain(kind, fields.token, remote_key.hash, created_ms);
        let mut header = fields.header(plain, created_ms);
        header.tags = u16::try_from(fields.tags.len()).unwrap_or(u16::MAX);
        let mut record = Header::reserve();
        let tags = fields.tags.iter().flat_map(|tag| tag.to_le_bytes());
        let tags: Vec<u8> = tags.collect();
        record.extend_from_slice(&tags);
        if let Some(value) = value {
            header.codec = remote.codec_id();
            header.schema = self.config.schema_version;
            let unencodable = |cause| {
                self.stats.encode_failures.add();
                RemoteError::because(RemoteKind::Unencodable, "encode", cause)
            };
            let fields = header.fields();
            let context = RecordContext::new(&remote_key.bytes, &fields, &tags);
            let encoded = remote.encode(value, &context, &mut record);
            encoded.map_err(unencodable)?;
            if record.len() > self.config.max_record_bytes {
                let bytes = record.len();
                let cause = format!("a record of {bytes} bytes is larger than max_record_bytes");
                return Err(unencodable(CodecError::new(cause)));
            }
        }
        header.write_to(&mut record);
        Ok(record)
    }

    /// The entry that a loader has found, and whether it may be kept. `previous`: the entry that it
    /// was given to compare with.
    pub(super) fn entry_from_load(
        &self,
        ended: EndedLoad,
        previous: Option<&FoundEntry>,
    ) -> (FoundEntry, bool) {
        let EndedLoad {
            loaded,
            cost,
            baseline,
            why,
            version_id,
        } = ended;
        let at = Instant::now();
        let previous = previous.filter(|_| loaded.unchanged);
        let too_many_tags = loaded.tags.len() > MAX_TAGS;
        if too_many_tags {
            self.stats.encode_failures.add();
        }
        let (value, tags) = match previous {
            Some(FoundEntry { answer, .. }) => {
                let renewed = |tags: &Tags| tags.renewed(baseline);
                (answer.value.clone(), answer.tags.as_ref().map(renewed))
            }
            None => {
                let tags = self.watermarks.tags(baseline, loaded.tags.into_iter());
                (loaded.value, tags)
            }
        };
        let ttl = match &value {
            _ if !loaded.store || too_many_tags => Duration::ZERO,
            Some(_) => self.config.draw_ttl(loaded.ttl, self.is_cold(at)),
            None => {
                let ttl = loaded.ttl.unwrap_or(self.config.negative_ttl);
                ttl.min(ttl::LONGEST)
            }
        };
        // Without a shared tier no other is left to ask when L1 may not answer any more.
        let fresh_for = match self.config.l1_ttl {
            Some(_) if self.remote.is_none() => ttl.min(self.config.l1_lifetime()),
            _ => ttl,
        };
        let fresh_until = ttl::deadline(at, fresh_for);
        let lifetime = Lifetime::new(fresh_until, value.is_some(), cost);
        let answer = Answer {
            value,
            source: Source::Loader,
            age: Duration::ZERO,
            at,
            fresh_until,
            freshness: Freshness::Fresh,
            provenance: Provenance::Forwarded { why, stored: false },
            tags,
        };
        let found = FoundEntry {
            answer,
            lifetime,
            of_l1: None,
            version_id,
        };
        (found, !ttl.is_zero())
    }
}

/// When the entry of a record is fresh, by this process's clock. `None`: its TTL was over before
/// this clock began.
fn lifetime_of(header: &Header, now_ms: u64, now: Instant) -> Option<Lifetime> {
    let age_ms = now_ms.saturating_sub(header.created_ms);
    let left = Duration::from_millis(header.fresh_ms.saturating_sub(age_ms));
    let over = Duration::from_millis(age_ms.saturating_sub(header.fresh_ms));
    let ended = now.checked_sub(over.min(ttl::LONGEST))?;
    Some(Lifetime {
        fresh_until: if left.is_zero() {
            ended
        } else {
            ttl::deadline(now, left)
        },
        expired: header.expired,
        has_stale_windows: header.kind == Kind::Value,
        cost: Duration::from_millis(header.load_cost_ms.into()),
    })
}
