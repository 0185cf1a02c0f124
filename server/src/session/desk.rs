//! What all sessions of one reactor share: the storages as this reactor knows them, the reader,
//! the clerks, and what is to be done for the sessions after they have spoken.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::DiskFile;
use zeoring_shared::ring::Full;
use zeoring_shared::wire::MessageId;

use crate::clerk::{Clerks, Errand};
use crate::commit::thread::Order;
use crate::limits::Limits;
use crate::note::{Committed, ConnectionId, Post, Ticket};
use crate::reader::Reader;
use crate::service::Service;
use crate::storage::View;
use crate::storage::load::{Walk, Want};

/// What sessions share.
#[derive(Debug)]
pub struct Desk {
    /// The storages, in the order of the configuration.
    pub halls: Vec<Hall>,
    /// Reads records that are in memory.
    pub reader: Reader,
    /// Whoever may wait for the disk.
    pub clerks: Arc<Clerks>,
    /// The inboxes of all reactors.
    pub post: Post,
    /// The server's limits and habits.
    pub limits: Arc<Limits>,
    /// The time of this turn: since some fixed moment.
    pub now: Duration,
    /// The time of this turn: since 1970.
    pub since_1970: Duration,
    /// Loads that have to wait for the disk, for the reactor to start.
    pub cold: Vec<ColdLoad>,
    /// Transactions that the commit threads have no place for yet, with their storages.
    pub orders_waiting: VecDeque<(usize, Order)>,
}

/// A storage as one reactor knows it. All its sessions see the same history, which moves on when
/// the reactor is told of a commit, and never between.
#[derive(Debug)]
pub struct Hall {
    /// The storage itself.
    pub service: Arc<Service>,
    /// What loads are answered from, until this reactor is told of a pack's end.
    pub view: Arc<dyn View>,
    /// The file that its loads walk through, if it has one.
    pub file: Option<Arc<dyn DiskFile>>,
    /// Counts the views: positions of one mean nothing in another.
    pub views: u32,
    /// The last commit that this reactor was told of.
    pub visible: Tid,
    /// The connections that are registered with it, and are told of commits.
    pub members: BTreeSet<ConnectionId>,
    /// Loads since the last [`Hall::settle`].
    pub loads: u64,
    recent: VecDeque<Arc<Recent>>,
    recent_max: usize,
}

/// A commit that clients may still ask about.
#[derive(Debug)]
pub struct Recent {
    /// The transaction.
    pub tid: Tid,
    /// What it wrote.
    pub oids: Vec<Oid>,
}

/// A load that has to wait for the disk.
#[derive(Debug)]
pub struct ColdLoad {
    /// Whose load it is.
    pub connection: ConnectionId,
    /// Which of its calls.
    pub id: MessageId,
    /// From which storage.
    pub storage: usize,
    /// Which object.
    pub oid: Oid,
    /// Before which transaction.
    pub before: Tid,
    /// How far it has come.
    pub walk: Walk,
    /// What it has to read.
    pub want: Want,
    /// In which of the [`Hall::views`].
    pub views: u32,
}

/// What a reactor can say about the commits since a transaction.
#[derive(Debug)]
pub enum Since {
    /// These objects were written, up to that transaction.
    Known(Tid, BTreeSet<Oid>),
    /// The list does not reach back so far.
    TooOld,
}

impl Hall {
    /// A storage with what it last committed, oldest first.
    pub fn new(service: Arc<Service>, recent: &[Arc<Recent>], recent_max: usize) -> Self {
        let visible = service.storage.last_tid();
        let view = service.storage.view();
        let file = view.data_file();
        let recent = recent.iter().cloned().collect();
        let members = BTreeSet::new();
        Self { service, view, file, views: 0, visible, members, loads: 0, recent, recent_max }
    }

    /// A pack has put another file in place: later commits are to be found there only.
    pub fn succeeded(&mut self, view: Arc<dyn View>) {
        self.file = view.data_file();
        self.view = view;
        self.views += 1;
    }

    /// Moves this reactor's history on.
    pub fn committed(&mut self, committed: &Committed) {
        assert!(self.visible < committed.tid, "the commit thread tells of commits in order");
        self.visible = committed.tid;
        while !self.recent.is_empty() && self.recent_max <= self.recent.len() {
            self.recent.pop_front();
        }
        if 0 < self.recent_max {
            let recent = Recent { tid: committed.tid, oids: committed.oids.clone() };
            self.recent.push_back(Arc::new(recent));
        }
    }

    /// What was written after a transaction, if the list of recent commits reaches back to it.
    pub fn since(&self, tid: Tid) -> Since {
        match (self.recent.front(), self.recent.back()) {
            (Some(oldest), Some(latest)) if oldest.tid <= tid => {
                let later = self.recent.iter().rev().take_while(|recent| tid < recent.tid);
                Since::Known(latest.tid, later.flat_map(|recent| recent.oids.clone()).collect())
            }
            _ => Since::TooOld,
        }
    }

    /// Adds what was counted here to what all reactors have counted.
    pub fn settle(&mut self) {
        if self.loads != 0 {
            self.service.stats.loads.fetch_add(self.loads, Ordering::Relaxed);
            self.loads = 0;
        }
    }
}

impl Desk {
    /// Sends an errand of a connection to a clerk.
    pub fn send(&self, connection: ConnectionId, errand: Errand) {
        // Neighbours go to different clerks.
        self.clerks.send(connection.slot() as u64, errand);
    }

    /// Leaves a transaction's locks.
    pub fn release(&self, storage: usize, ticket: Ticket) {
        self.halls[storage].service.release(ticket, &self.post);
    }

    /// Hands a voted transaction to the commit thread.
    ///
    /// A connection has one transaction at a time, and the queue a place for every connection, but
    /// connections come and go while the disk is slow, and what they have ordered stays.
    pub fn order(&mut self, storage: usize, order: Order) {
        self.orders_waiting.push_back((storage, order));
        self.send_orders();
    }

    /// Hands over what has waited, as far as there are places. Returns whether nothing waits.
    pub fn send_orders(&mut self) -> bool {
        while let Some((storage, order)) = self.orders_waiting.pop_front() {
            if let Err(Full(order)) = self.halls[storage].service.orders.leave(order) {
                self.orders_waiting.push_front((storage, order));
                return false;
            }
        }
        true
    }
}
