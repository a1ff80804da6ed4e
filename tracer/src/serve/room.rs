//! Memory that answers may take: together, while they are looked up and until their clients have taken them. Else as many
//! slow clients as there may be connections would hold more than the agent is given.

use super::Shared;
use super::answer::{self, Body};
use hyper::Response;
use hyper::body::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// KiB of all answers together.
pub(super) const ALL: u32 = 32 << 10;
/// KiB that looking one up and drawing it takes at most.
const ONE: u32 = 12 << 10;
/// Who waits for longer is turned away.
const WAIT: Duration = Duration::from_secs(10);

/// Of one answer.
pub(super) struct Room(OwnedSemaphorePermit);

impl Room {
    /// For the largest answer. An error: others hold it, and do not take what they asked for.
    pub(super) async fn get(shared: &Shared) -> Result<Room, Response<Body>> {
        let wait = tokio::time::timeout(WAIT, Arc::clone(&shared.answers).acquire_many_owned(ONE));
        match wait.await {
            Ok(Ok(permit)) => Ok(Room(permit)),
            _ => {
                shared.own.refused_answers.fetch_add(1, Ordering::Relaxed);
                Err(answer::busy("too many answers are under way"))
            }
        }
    }

    /// What this one takes in the end is held until the last byte of it is with the system.
    pub(super) fn of(mut self, text: String) -> Bytes {
        let needs = usize::try_from(ONE).unwrap_or(usize::MAX).min(text.len() / 1024 + 1);
        // The rest is free again.
        let permit = self.0.split(needs);
        drop(self);
        Bytes::from_owner(Held { text, _permit: permit })
    }
}

struct Held {
    text: String,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[test]
    fn an_answer_holds_what_it_takes_until_it_is_gone() {
        let all = Arc::new(Semaphore::new(ALL as usize));
        let room = |all: &Arc<Semaphore>| Arc::clone(all).try_acquire_many_owned(ONE).map(Room);
        let answers: Vec<Bytes> = std::iter::from_fn(|| Some(room(&all).ok()?.of("x".repeat(4 << 20)))).collect();
        let free = ALL as usize - all.available_permits();
        assert_eq!((answers.len(), free), (5, 5 * (4096 + 1)), "then there is no room for one more");
        let part = answers[0].slice(..10);
        drop(answers);
        assert_eq!(all.available_permits(), ALL as usize - 4097, "a part of it is still to be sent");
        drop(part);
        assert_eq!(all.available_permits(), ALL as usize);
        // Whoever gives up gives all of it back.
        drop(room(&all));
        assert_eq!(all.available_permits(), ALL as usize);
    }
}
