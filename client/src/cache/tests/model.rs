//! Any sequence of events, against a server that is a map: every hit is what the server would have
//! answered at the cache's last tid.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use zeoring_shared::ids::{Oid, Tid};

use super::disk::{SimChance, SimDisk};
use crate::cache::{Cache, CacheFile, CacheOptions};
use crate::session::Revision;

const OIDS: u64 = 8;

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody commits; we are told later.
    Commit(Vec<u64>, usize),
    /// We are told of the next commit.
    Deliver,
    /// We commit; the server writes something else for some of the objects.
    OwnCommit(Vec<u64>, usize, bool),
    /// The answer to a load, computed at any point between what we were told and the present.
    Load {
        oid: u64,
        back: usize,
        ahead: usize,
    },
    /// The same from a server that gets the order wrong.
    LateLoad {
        oid: u64,
        behind: usize,
    },
    /// A whole cache of loads.
    LoadAll,
    Forget(Vec<u64>),
    Ask {
        oid: u64,
        back: usize,
    },
    AskAll,
    Settle,
    /// Close, and open again.
    Restart,
    /// Kill, undoing the last writes.
    Kill {
        undone: usize,
        torn: usize,
    },
    CutPower {
        seed: u64,
    },
    /// Kill or close, and damage the file.
    Damage {
        closes: bool,
        place: usize,
        damage: Damage,
    },
    /// The connection is lost: what we were not told, we have to ask for.
    Reconnect {
        is_too_old: bool,
    },
    /// The server is restored from a backup that lacks the last commits.
    Restore {
        lost: usize,
    },
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(u8),
    Zero(usize),
    Truncate,
}

/// A server and its history.
#[derive(Debug, Default)]
struct Server {
    objects: BTreeMap<u64, Vec<(u64, Bytes)>>,
    commits: Vec<(u64, Vec<u64>)>,
    last_given: u64,
}

impl Server {
    fn commit(&mut self, oids: &[u64], length: usize) -> u64 {
        self.last_given += 2;
        let tid = self.last_given;
        for &oid in oids {
            let data = format!("{oid} {tid} ").repeat(1 + length / 5);
            self.objects.entry(oid).or_default().push((tid, Bytes::from(data)));
        }
        self.commits.push((tid, oids.to_vec()));
        tid
    }

    fn last(&self) -> u64 {
        self.commits.last().map_or(0, |(tid, _)| *tid)
    }

    /// What was answered to a load when `now` was the last transaction.
    fn load(&self, oid: u64, before: u64, now: u64) -> Option<Revision> {
        let revisions = self.objects.get(&oid)?;
        let known = &revisions[..revisions.partition_point(|(tid, _)| *tid <= now)];
        let count = known.partition_point(|(tid, _)| *tid < before);
        let (serial, data) = known.get(count.checked_sub(1)?)?;
        let end = known.get(count).map(|(tid, _)| Tid(*tid));
        Some(Revision { data: data.clone(), serial: Tid(*serial), end })
    }

    fn next(&self, oid: u64, serial: Tid) -> Option<Tid> {
        let revisions = self.objects.get(&oid)?;
        revisions.iter().map(|(tid, _)| Tid(*tid)).find(|tid| serial < *tid)
    }

    fn restore(&mut self, lost: usize) {
        let kept = self.commits.len().saturating_sub(lost);
        self.commits.truncate(kept);
        let last = self.last();
        self.objects.values_mut().for_each(|revisions| revisions.retain(|(tid, _)| *tid <= last));
    }
}

struct World {
    server: Server,
    disk: SimDisk,
    options: CacheOptions,
    boots: u32,
    cache: Option<Cache>,
    /// Commits that we are not told of yet.
    untold: VecDeque<(u64, Vec<u64>)>,
    /// What the server's last transaction was when we connected.
    connected: u64,
    hits: u64,
}

impl World {
    fn new(memory_max: usize, size_max: Option<u64>) -> Self {
        let path = PathBuf::from("cache");
        let file = size_max.map(|size_max| CacheFile { path, size_max });
        let mut world = Self {
            server: Server::default(),
            disk: SimDisk::default(),
            options: CacheOptions { memory_max, file },
            boots: 0,
            cache: None,
            untold: VecDeque::new(),
            connected: 0,
            hits: 0,
        };
        world.server.commit(&[0], 0);
        world.open();
        world
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("cache")
    }

    fn cache(&self) -> &Cache {
        self.cache.as_ref().expect("it is open between events")
    }

    fn open(&mut self) {
        let machine = self.disk.machine();
        let boot = format!("boot {}", self.boots);
        let (cache, _) = Cache::open_on(&machine, &boot, &self.options).unwrap();
        self.cache = Some(cache);
        // Before anything is asked of the server, the cache is true for its own last tid.
        self.check_history();
        self.ask_all();
        self.connect(false);
    }

    /// What a client does with a cache of another history (G19).
    fn check_history(&mut self) {
        let is_known = |last: Tid| self.server.commits.iter().any(|(tid, _)| *tid == last.0);
        if self.cache().last_tid().is_some_and(|last| !is_known(last)) {
            self.cache().clear();
        }
    }

    fn connect(&mut self, is_too_old: bool) {
        self.untold.clear();
        self.connected = self.server.last();
        self.check_history();
        let now = Tid(self.connected);
        match self.cache().last_tid() {
            Some(_) if is_too_old => self.cache().clear(),
            Some(last) => {
                let missed = self.server.commits.iter().filter(|(tid, _)| last.0 < *tid);
                let oids: Vec<Oid> = missed.flat_map(|(_, oids)| oids).map(|o| Oid(*o)).collect();
                self.cache().forget(&oids);
            }
            None => {}
        }
        self.cache().advance(now);
    }

    fn deliver(&mut self) {
        if let Some((tid, oids)) = self.untold.pop_front() {
            let oids: Vec<Oid> = oids.into_iter().map(Oid).collect();
            self.cache().invalidate(Tid(tid), &oids);
        }
    }

    fn last(&self) -> u64 {
        self.cache().last_tid().expect("a connected cache knows what it is true for").0
    }

    fn load(&mut self, oid: u64, back: usize, now: u64) {
        let before = (self.last() + 1).saturating_sub(back as u64);
        if let Some(revision) = self.server.load(oid, before, now) {
            self.cache().insert(Oid(oid), &revision);
        }
    }

    fn ask(&mut self, oid: u64, before: u64) {
        let Some(last) = self.cache().last_tid() else {
            assert_eq!(self.cache().load_before(Oid(oid), Tid(before)), None);
            return;
        };
        let Some(hit) = self.cache().load_before(Oid(oid), Tid(before)) else { return };
        self.hits += 1;
        let truth = self.server.load(oid, before, last.0);
        let truth = truth.unwrap_or_else(|| panic!("{oid} before {before} at {last}: {hit:?}"));
        assert_eq!(hit.serial, truth.serial, "{oid} before {before} at {last}");
        assert_eq!(hit.data, truth.data, "{oid} before {before} at {last}");
        // An end may be known before the transaction that made it, but never late, never wrong.
        match hit.end {
            Some(_) => assert_eq!(hit.end, self.server.next(oid, hit.serial)),
            None => assert_eq!(truth.end, None, "{oid} before {before} at {last}"),
        }
    }

    fn ask_all(&mut self) {
        for oid in 0..OIDS {
            for before in 0..=self.server.last_given + 2 {
                self.ask(oid, before);
            }
            self.ask(oid, Tid::MAX.0);
        }
    }

    fn reopen(&mut self, end: impl FnOnce(&mut Self)) {
        self.cache().settle();
        self.cache = None;
        end(self);
        self.open();
    }

    fn close(&self) {
        self.cache().close().unwrap();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Commit(oids, length) => {
                let tid = self.server.commit(&oids, length);
                self.untold.push_back((tid, oids));
            }
            Event::Deliver => self.deliver(),
            Event::OwnCommit(oids, length, is_changed) => {
                while !self.untold.is_empty() {
                    self.deliver();
                }
                let tid = self.server.commit(&oids, length);
                let all: Vec<Oid> = oids.iter().copied().map(Oid).collect();
                self.cache().invalidate(Tid(tid), &all);
                for oid in oids.into_iter().skip(usize::from(is_changed)) {
                    let revision = self.server.load(oid, tid + 1, tid).unwrap();
                    self.cache().insert(Oid(oid), &revision);
                }
            }
            Event::Load { oid, back, ahead } => {
                let ahead = ahead.min(self.untold.len());
                let now = match ahead.checked_sub(1) {
                    Some(place) => self.untold[place].0,
                    None => self.last(),
                };
                self.load(oid, back, now);
            }
            Event::LateLoad { oid, behind } => {
                let now = self.last().saturating_sub(2 * behind as u64).max(self.connected);
                self.load(oid, 0, now);
            }
            Event::LoadAll => {
                (0..OIDS).for_each(|oid| self.load(oid, 0, self.last()));
            }
            Event::Forget(oids) => {
                let oids: Vec<Oid> = oids.into_iter().map(Oid).collect();
                self.cache().forget(&oids);
            }
            Event::Ask { oid, back } => {
                self.ask(oid, (self.last() + 1).saturating_sub(back as u64));
            }
            Event::AskAll => self.ask_all(),
            Event::Settle => self.cache().settle(),
            Event::Restart => {
                self.close();
                self.reopen(|_| {});
            }
            Event::Kill { undone, torn } => {
                self.reopen(|world| world.disk.kill(&world.path(), undone, torn));
            }
            Event::CutPower { seed } => self.reopen(|world| {
                world.disk.cut_power(&world.path(), &SimChance::new(seed));
                world.boots += 1;
            }),
            Event::Damage { closes, place, damage } => {
                if closes {
                    self.close();
                }
                self.reopen(|world| {
                    world.disk.damage(&world.path(), |bytes| {
                        let place = place % bytes.len().max(1);
                        match damage {
                            _ if bytes.is_empty() => {}
                            Damage::Flip(mask) => bytes[place] ^= mask,
                            Damage::Zero(length) => {
                                let end = bytes.len().min(place + length);
                                bytes[place..end].fill(0);
                            }
                            Damage::Truncate => bytes.truncate(place),
                        }
                    });
                });
            }
            Event::Reconnect { is_too_old } => self.connect(is_too_old),
            Event::Restore { lost } => {
                self.server.restore(lost);
                self.server.commit(&[0], 3);
                self.connect(false);
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let oids = || {
        prop::collection::vec(0..OIDS, 0..4).prop_map(|mut oids| {
            oids.sort_unstable();
            oids.dedup();
            oids
        })
    };
    let length = || prop_oneof![4 => 0..300_usize, 1 => 300..3000_usize];
    let damage = prop_oneof![
        4 => (1..=255_u8).prop_map(Damage::Flip),
        2 => (1..5000_usize).prop_map(Damage::Zero),
        1 => Just(Damage::Truncate),
    ];
    prop_oneof![
        10 => (oids(), length()).prop_map(|(oids, length)| Event::Commit(oids, length)),
        10 => Just(Event::Deliver),
        5 => (oids(), length(), any::<bool>())
            .prop_map(|(oids, length, changed)| Event::OwnCommit(oids, length, changed)),
        20 => (0..OIDS, 0..8_usize, 0..3_usize)
            .prop_map(|(oid, back, ahead)| Event::Load { oid, back, ahead }),
        2 => (0..OIDS, 0..8_usize).prop_map(|(oid, behind)| Event::LateLoad { oid, behind }),
        3 => Just(Event::LoadAll),
        2 => oids().prop_map(Event::Forget),
        10 => (0..OIDS, 0..8_usize).prop_map(|(oid, back)| Event::Ask { oid, back }),
        2 => Just(Event::AskAll),
        5 => Just(Event::Settle),
        2 => Just(Event::Restart),
        3 => (0..6_usize, 0..4000_usize)
            .prop_map(|(undone, torn)| Event::Kill { undone, torn }),
        2 => any::<u64>().prop_map(|seed| Event::CutPower { seed }),
        1 => (any::<bool>(), any::<usize>(), damage)
            .prop_map(|(closes, place, damage)| Event::Damage { closes, place, damage }),
        2 => any::<bool>().prop_map(|is_too_old| Event::Reconnect { is_too_old }),
        1 => (1..5_usize).prop_map(|lost| Event::Restore { lost }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_hit_is_what_the_server_would_have_answered(
        events in prop::collection::vec(event(), 1..120),
        memory_max in prop_oneof![Just(0), 300..5000_usize, Just(1 << 20)],
        size_max in prop_oneof![1 => Just(None), 4 => Just(Some(20 * 1024)), 1 => Just(Some(1 << 20))],
    ) {
        let mut world = World::new(memory_max, size_max);
        for event in events {
            world.happen(event);
        }
        world.ask_all();
    }
}
