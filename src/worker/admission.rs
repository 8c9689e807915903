//! Who is let in, and who is refused before any cryptography: by what its source has open, by what
//! its source's handshakes have cost, and by how fast new connections come.
//!
//! What a source has is looked at when a client is accepted, and what its handshakes have cost once
//! more when the first step of one is due: a thousand may have come before the first has cost
//! anything. Whoever its source's limit refuses takes nothing from the rates, which are for all.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Limits, PerSource, Refuse};
use crate::io::Io;
use crate::limits::STEP_CHARGE_MAX;
use crate::telemetry::labels::{HandshakeOutcome, HandshakeStep, KeyType, Label, Limit};

use super::Worker;
use super::scheduler::Waiting;
use super::sources::table::{Denial, Handle};

/// What decides who is let in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// `limits.connection_rate`.
    pub connection_rate: Option<u32>,
    /// `limits.refuse`.
    pub refuse: Refuse,
    /// `limits.per_source`.
    pub per_source: PerSource,
    /// What handshakes cost.
    pub costs: Costs,
}

impl Admission {
    /// As configured.
    pub fn new(limits: &Limits, costs: Costs) -> Self {
        Self {
            connection_rate: limits.connection_rate,
            refuse: limits.refuse,
            per_source: limits.per_source.clone(),
            costs,
        }
    }

    /// Whether a client's source is limited.
    fn counts(&self, client: IpAddr) -> bool {
        let PerSource { allow, .. } = &self.per_source;
        self.per_source.is_on() && !allow.iter().any(|network| network.contains(client))
    }
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connection_rate`.
    ConnectionRate,
    /// `listener.connection_rate`.
    ListenerConnectionRate,
    /// `limits.per_source.connections`.
    SourceConnections,
    /// `limits.per_source.handshakes`.
    SourceHandshakes,
    /// `limits.per_source.handshake_cpu`.
    SourceHandshakeCpu,
}

impl Refusal {
    /// The limit that bites.
    pub fn limit(self) -> Limit {
        match self {
            Self::ConnectionRate => Limit::ConnectionRate,
            Self::ListenerConnectionRate => Limit::ListenerConnectionRate,
            Self::SourceConnections => Limit::SourceConnections,
            Self::SourceHandshakes => Limit::SourceHandshakes,
            Self::SourceHandshakeCpu => Limit::SourceHandshakeCpu,
        }
    }

    /// How the client's handshake ends.
    pub fn outcome(self) -> HandshakeOutcome {
        match self {
            Self::ConnectionRate => HandshakeOutcome::ConnectionRate,
            Self::ListenerConnectionRate => HandshakeOutcome::ListenerConnectionRate,
            Self::SourceConnections => HandshakeOutcome::SourceConnections,
            Self::SourceHandshakes => HandshakeOutcome::SourceHandshakes,
            Self::SourceHandshakeCpu => HandshakeOutcome::SourceHandshakeCpu,
        }
    }
}

/// What steps of handshakes cost on this machine, as measured at the start with each configured
/// key; nothing, if nothing was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Costs {
    full: [Duration; KeyType::COUNT],
    resumed: Duration,
    later: Duration,
    dearest: Duration,
}

impl Costs {
    /// Takes in what the steps of one more key's handshakes cost. Of several keys that share a type
    /// the cheapest counts; the worker can tell types apart and no more.
    pub fn add(&mut self, key: KeyType, full: Duration, resumed: Duration, later: Duration) {
        let least = |of: &mut Duration, cost: Duration| {
            *of = if of.is_zero() { cost } else { cost.min(*of) };
        };
        if let Some(of) = self.full.get_mut(key.index()) {
            least(of, full);
        }
        least(&mut self.resumed, resumed);
        least(&mut self.later, later);
        self.dearest = self.dearest.max(full);
    }

    /// What a step is charged: its key's cost, or what it took if that was more, because the client
    /// chose a dear group or sent certificates. But not for a time when the thread had lost its
    /// core.
    pub fn charge(&self, step: HandshakeStep, key: KeyType, took: Duration) -> Duration {
        let least = match step {
            HandshakeStep::Full => self.full.get(key.index()).copied().unwrap_or_default(),
            HandshakeStep::Resumed => self.resumed,
            HandshakeStep::Later => self.later,
            HandshakeStep::Retry | HandshakeStep::Failed => Duration::ZERO,
        };
        if self.dearest.is_zero() {
            return took;
        }
        took.min(self.dearest * STEP_CHARGE_MAX).max(least)
    }
}

impl<I: Io> Worker<I> {
    /// Lets a client in; what is counted for it is its connection's to give back.
    ///
    /// # Errors
    /// Why it is not let in; then nothing is counted for it.
    pub(super) fn admit(&self, listener: u16, client: IpAddr) -> Result<Option<Handle>, Refusal> {
        let is_counted = self.snapshot.admission.counts(client);
        let source = if is_counted { self.enter(client)? } else { None };
        let Err(refusal) = self.keep_pace(listener) else {
            return Ok(source);
        };
        if let Some(source) = source {
            self.sources.handshake_ended(source);
            self.sources.leave(source);
        }
        Err(refusal)
    }

    fn enter(&self, client: IpAddr) -> Result<Option<Handle>, Refusal> {
        let per_source = &self.snapshot.admission.per_source;
        match self.sources.enter(client, per_source, self.now) {
            Ok(source) => Ok(Some(source)),
            Err(Denial::Connections) => Err(Refusal::SourceConnections),
            Err(Denial::Handshakes) => Err(Refusal::SourceHandshakes),
            Err(Denial::Spent) => Err(Refusal::SourceHandshakeCpu),
            Err(Denial::NoPlace) => {
                self.counters.limits.of(Limit::SourceTable).add(1);
                Ok(None)
            }
        }
    }

    /// Takes a place among this second's new connections, if there is one.
    fn keep_pace(&self, listener: u16) -> Result<(), Refusal> {
        let of_listener = self.snapshot.listeners.get(usize::from(listener));
        let of_listener = of_listener.and_then(|listener| listener.connection_rate);
        if let Some(rate) = of_listener
            && !self.sources.take_of_listener(listener, rate, self.now)
        {
            return Err(Refusal::ListenerConnectionRate);
        }
        if let Some(rate) = self.snapshot.admission.connection_rate
            && !self.sources.take_of_all(rate, self.now)
        {
            if let Some(rate) = of_listener {
                self.sources.give_back_to_listener(listener, rate);
            }
            return Err(Refusal::ConnectionRate);
        }
        Ok(())
    }

    /// Whether a handshake's first step must not be done, because its source's bucket is empty.
    pub(super) fn is_spent(&mut self, slot: u32, generation: u32) -> bool {
        let source = self.source(slot, generation);
        source.is_some_and(|source| self.sources.is_spent(source, self.now))
    }

    /// Charges a step to the source of its connection.
    pub(super) fn charge(
        &self,
        source: Option<Handle>,
        (step, key): (HandshakeStep, KeyType),
        took: Duration,
    ) {
        let Admission { per_source, costs, .. } = &self.snapshot.admission;
        if let (Some(source), Some(a_second)) = (source, per_source.handshake_cpu) {
            self.sources.charge(source, costs.charge(step, key, took), a_second, self.now);
        }
    }

    /// Refuses a client whose handshake waits for its first step.
    pub(super) fn refuse(&mut self, waiting: Waiting, refusal: Refusal) {
        let Waiting { slot, generation, .. } = waiting;
        let how = self.snapshot.admission.refuse;
        let mut refused = false;
        self.with_connection(slot, generation, |connection, cx| {
            refused = connection.refuse(refusal.outcome(), how, cx);
        });
        if refused {
            self.counters.limits.of(refusal.limit()).add(1);
        }
    }

    /// The source that a connection is counted under.
    pub(super) fn source(&mut self, slot: u32, generation: u32) -> Option<Handle> {
        self.table.connection(slot, generation)?.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn costs() -> Costs {
        let mut costs = Costs::default();
        costs.add(KeyType::EcdsaP256, micros(80), micros(60), micros(10));
        costs.add(KeyType::Rsa4096, micros(3500), micros(62), micros(9));
        // More than 4096 bits: the same type.
        costs.add(KeyType::Rsa4096, micros(9000), micros(61), micros(11));
        costs
    }

    #[test]
    fn a_step_weighs_what_its_key_does_or_what_it_took() {
        let costs = costs();
        for (step, key, took, charged) in [
            (HandshakeStep::Full, KeyType::EcdsaP256, 70, 80),
            (HandshakeStep::Full, KeyType::EcdsaP256, 300, 300),
            (HandshakeStep::Full, KeyType::Rsa4096, 3000, 3500),
            (HandshakeStep::Resumed, KeyType::None, 50, 60),
            (HandshakeStep::Later, KeyType::None, 5, 9),
            // The signatures of a client's certificates.
            (HandshakeStep::Later, KeyType::None, 400, 400),
            (HandshakeStep::Failed, KeyType::None, 2, 2),
        ] {
            let got = costs.charge(step, key, micros(took));
            assert_eq!(got, micros(charged), "{step} {key} {took}");
        }
    }

    #[test]
    fn a_thread_that_has_lost_its_core_does_not_bill_the_client() {
        let lost = micros(200_000);
        assert_eq!(costs().charge(HandshakeStep::Later, KeyType::None, lost), micros(36_000));
        let mut costs = Costs::default();
        costs.add(KeyType::EcdsaP256, micros(80), micros(60), micros(10));
        assert_eq!(costs.charge(HandshakeStep::Full, KeyType::EcdsaP256, lost), micros(320));
    }

    #[test]
    fn without_a_measurement_a_step_weighs_what_it_took() {
        let charged = Costs::default().charge(HandshakeStep::Full, KeyType::Rsa2048, micros(700));
        assert_eq!(charged, micros(700));
    }
}
