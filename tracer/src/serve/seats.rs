//! Connections that are open, and whose they are: one client must not keep all others out, least of all the kubelet, whose
//! probe would have a healthy agent started again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct Seats {
    all: Arc<Semaphore>,
    /// Of one address. This host's own clients are one address and not one client: they may have all.
    one: usize,
    held: Mutex<BTreeMap<IpAddr, usize>>,
}

/// Of one connection.
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    pub(super) fn new(all: usize, one: usize) -> Arc<Seats> {
        Arc::new(Seats { all: Arc::new(Semaphore::new(all)), one, held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that are open.
    pub(super) fn taken(&self) -> usize {
        self.held().values().sum()
    }

    /// `None`: there is no room, or none for this address.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        // As a socket for both families names IPv4.
        let peer = peer.to_canonical();
        let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut held = self.held();
        let of_it = held.get(&peer).copied().unwrap_or_default();
        if of_it >= self.one && !peer.is_loopback() {
            return None;
        }
        held.insert(peer, of_it + 1);
        Some(Seat { seats: Arc::clone(self), peer, _permit: permit })
    }

    /// Until nobody is there any more; `all` is their number.
    pub(super) async fn empty(&self, all: usize) {
        let _ = self.all.acquire_many(u32::try_from(all).unwrap_or(u32::MAX)).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut held = self.seats.held();
        match held.get_mut(&self.peer) {
            Some(more) if *more > 1 => *more -= 1,
            _ => _ = held.remove(&self.peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let seats = Seats::new(5, 2);
        let take = |text: &str| seats.take(text.parse().unwrap());
        let mut flood = vec![take("10.0.0.7").unwrap(), take("::ffff:10.0.0.7").unwrap()];
        assert!(take("10.0.0.7").is_none());
        let local = [take("127.0.0.1").unwrap(), take("127.0.0.1").unwrap(), take("127.0.0.1").unwrap()];
        assert_eq!(seats.taken(), 5);
        assert!(take("10.0.0.8").is_none(), "it is full");
        drop(local);
        assert!(take("10.0.0.8").is_some() && take("10.0.0.7").is_none());
        flood.pop();
        flood.push(take("10.0.0.7").unwrap());
        drop(flood);
        assert!(seats.taken() == 0 && seats.held().is_empty(), "nothing is remembered");
    }
}
