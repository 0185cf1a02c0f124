//! The order of answers and invalidations, and what of it reaches caches and callers.

use std::sync::Mutex;

use super::*;
use crate::view::Watcher;

#[test]
fn a_current_answer_that_comes_after_its_invalidation_is_asked_again() {
    for (codec, before) in CODECS.into_iter().flat_map(|codec| [(codec, Tid::MAX), (codec, Tid(9))])
    {
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, before, 0);
        talk.calls();
        let late = talk.sent().invalidation(6, &[1]).load(1, before, (b"old", 4, None));
        talk.hear(late).unwrap();
        assert!(talk.answers().is_empty());
        assert_eq!(talk.cached(1), None);
        assert_eq!(talk.calls(), ["loadBefore"]);
        talk.hear(talk.sent().load(1, before, (b"new", 6, None))).unwrap();
        assert_eq!(talk.answer(), (0, revision(b"new", 6, None)));
        assert_eq!(talk.cached(1), Some((b"new".to_vec(), 6, None)));
    }
}

#[test]
fn a_late_answer_that_is_right_as_of_then_is_given_but_not_remembered() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, Tid(6), 0);
        let late = talk.sent().invalidation(6, &[1]).load(1, Tid(6), (b"old", 4, None));
        talk.hear(late).unwrap();
        assert_eq!(talk.answer(), (0, revision(b"old", 4, None)));
        assert_eq!(talk.cached(1), None);
    }
}

#[test]
fn a_late_answer_that_says_when_it_ended_is_remembered_as_old() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, Tid(6), 0);
        let late = talk.sent().invalidation(6, &[1]).load(1, Tid(6), (b"old", 4, Some(6)));
        talk.hear(late).unwrap();
        assert_eq!(talk.answer(), (0, revision(b"old", 4, Some(6))));
        assert_eq!(talk.cached(1), None);
        let old = talk.view.cache().load_before(Oid(1), Tid(6));
        assert_eq!(old.map(|old| (old.serial, old.end)), Some((Tid(4), Some(Tid(6)))));
    }
}

#[test]
fn an_answer_is_remembered_before_the_invalidation_that_follows_it_in_one_packet() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, Tid::MAX, 0);
        let both = talk.sent().load(1, Tid::MAX, (b"old", 4, None)).invalidation(6, &[1]);
        talk.hear(both).unwrap();
        assert_eq!(talk.answer(), (0, revision(b"old", 4, None)));
        assert_eq!(talk.cached(1), None);
        let old = talk.view.cache().load_before(Oid(1), Tid(6));
        assert_eq!(old.map(|old| (old.serial, old.end)), Some((Tid(4), Some(Tid(6)))));
    }
}

#[test]
fn an_answer_newer_than_what_was_told_is_given_but_not_remembered() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    talk.load(1, Tid::MAX, 0);
    talk.hear(talk.sent().load(1, Tid::MAX, (b"new", 6, None))).unwrap();
    assert_eq!(talk.answer(), (0, revision(b"new", 6, None)));
    assert_eq!((talk.cached(1), talk.last()), (None, 5));
    talk.hear(talk.sent().invalidation(6, &[1])).unwrap();
    assert_eq!((talk.cached(1), talk.last()), (None, 6));
}

#[test]
fn an_own_commit_overtakes_a_load_like_anybodys() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, Tid::MAX, 0);
        talk.ask(finish(&[(1, b"mine")], &[2]), 1);
        talk.calls();
        let sent = talk.sent().reply(3, &tid(6)).load(1, Tid::MAX, (b"old", 4, None));
        talk.hear(sent).unwrap();
        assert_eq!(talk.answer(), (1, Answer::Tid(Tid(6))));
        assert_eq!(talk.cached(1), Some((b"mine".to_vec(), 6, None)));
        assert_eq!(talk.calls(), ["loadBefore"]);
    }
}

#[test]
fn an_own_commit_takes_its_place_between_those_of_others() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.ask(finish(&[(1, b"mine")], &[3]), 0);
        let sent = talk.sent().invalidation(6, &[1]).reply(3, &tid(7)).invalidation(8, &[2]);
        talk.hear(sent).unwrap();
        assert_eq!(talk.answer(), (0, Answer::Tid(Tid(7))));
        assert_eq!(talk.cached(1), Some((b"mine".to_vec(), 7, None)));
        assert_eq!((talk.last(), talk.heard()), (8, vec![6, 8]));

        let mut talk = Talk::ready(codec, 5);
        talk.ask(finish(&[(1, b"mine")], &[]), 0);
        talk.hear(talk.sent().reply(3, &tid(6)).invalidation(7, &[1])).unwrap();
        assert_eq!((talk.cached(1), talk.last()), (None, 7));
    }
}

#[test]
fn what_an_own_commit_wrote_otherwise_than_it_was_sent_is_not_remembered() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    talk.load(2, Tid::MAX, 0);
    talk.hear(talk.sent().load(2, Tid::MAX, (b"old", 4, None))).unwrap();
    talk.ask(finish(&[(1, b"mine")], &[2]), 1);
    talk.hear(talk.sent().reply(3, &tid(6))).unwrap();
    assert_eq!(talk.cached(1), Some((b"mine".to_vec(), 6, None)));
    assert_eq!(talk.cached(2), None);
}

#[test]
fn tids_that_do_not_rise_end_the_session() {
    for codec in CODECS {
        for number in [0, 4, 5] {
            let mut talk = Talk::ready(codec, 5);
            let heard = talk.hear(talk.sent().invalidation(number, &[1]));
            assert!(matches!(heard, Err(SessionError::BackInTime { .. })), "{heard:?}");
            let mut talk = Talk::ready(codec, 5);
            talk.ask(finish(&[(1, b"mine")], &[]), 0);
            let heard = talk.hear(talk.sent().reply(3, &tid(number)));
            assert!(matches!(heard, Err(SessionError::BackInTime { .. })), "{heard:?}");
            assert_eq!((talk.last(), talk.cached(1)), (5, None));
        }
    }
}

#[test]
fn equal_loads_are_sent_once_and_answered_to_each() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    [5, 6, 5, 5].into_iter().zip(0..).for_each(|(oid, waiter)| talk.load(oid, Tid::MAX, waiter));
    assert_eq!(talk.calls(), ["loadBefore", "loadBefore"]);
    talk.hear(talk.sent().load(5, Tid::MAX, (b"five", 4, None))).unwrap();
    let mut answered = Vec::new();
    for (waiter, outcome) in talk.answers() {
        assert_eq!(outcome.unwrap(), revision(b"five", 4, None));
        answered.push(waiter);
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 2, 3]);
    talk.load(5, Tid::MAX, 9);
    assert_eq!(talk.calls(), ["loadBefore"], "the same after its answer is a new one");
}

#[test]
fn many_loads_are_answered_together_each_for_itself() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        let oids = [1, 2, 3, 1].map(Oid).to_vec();
        talk.ask(Question::Loads { oids, before: Tid::MAX }, 0);
        talk.ask(Question::Loads { oids: vec![], before: Tid::MAX }, 1);
        assert_eq!(talk.answer(), (1, Answer::Revisions(vec![])));
        assert_eq!(talk.calls().len(), 3);
        talk.hear(talk.sent().load_none(3, Tid::MAX).load_error(2, Tid::MAX)).unwrap();
        assert!(talk.answers().is_empty());
        // One of them is overtaken, and asked once more.
        let sent = talk.sent().invalidation(6, &[1]).load(1, Tid::MAX, (b"old", 4, None));
        talk.hear(sent).unwrap();
        assert!(talk.answers().is_empty());
        talk.hear(talk.sent().load(1, Tid::MAX, (b"new", 6, None))).unwrap();
        let (0, Answer::Revisions(results)) = talk.answer() else { panic!("no revisions") };
        let [Ok(Some(first)), Err(error), Ok(None), Ok(Some(last))] = &results[..] else {
            panic!("{results:?}");
        };
        assert_eq!((first.serial, last), (Tid(6), first));
        assert!(error.is_missing_object());
        assert_eq!(error.oid, Some(Oid(2)));
    }
}

#[test]
fn a_thousand_objects_at_once_overtake_as_one_does() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    let all: Vec<u64> = (0..1000).collect();
    talk.load(999, Tid::MAX, 0);
    talk.load(1000, Tid::MAX, 1);
    let sent = talk.sent().invalidation(6, &all);
    let sent = sent.load(999, Tid::MAX, (b"old", 4, None)).load(1000, Tid::MAX, (b"s", 4, None));
    talk.hear(sent).unwrap();
    assert_eq!(talk.answer(), (1, revision(b"s", 4, None)));
}

#[test]
fn the_cache_and_the_watchers_know_before_the_last_transaction_moves() {
    struct Look(Arc<View>, Mutex<Vec<(u64, u64, bool)>>);
    impl Watcher for Look {
        fn invalidated(&self, tid: Tid, oids: &[Oid]) {
            let is_cached = self.0.cache().load_before(oids[0], Tid::MAX).is_some();
            self.1.lock().unwrap().push((tid.0, self.0.last_tid().0, is_cached));
        }
        fn everything_invalidated(&self, _: Tid) {
            unreachable!("nothing is lost");
        }
    }
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    let look = Arc::new(Look(Arc::clone(&talk.view), Mutex::default()));
    talk.view.watch(Arc::clone(&look) as Arc<dyn Watcher>);
    talk.load(1, Tid::MAX, 0);
    let sent = talk.sent().load(1, Tid::MAX, (b"old", 4, None));
    talk.hear(sent.invalidation(6, &[1]).invalidation(7, &[1])).unwrap();
    assert_eq!(*look.1.lock().unwrap(), [(6, 5, false), (7, 6, false)]);

    let view = Arc::clone(&talk.view);
    let seen = Arc::new(Mutex::new(None));
    let told = Arc::clone(&seen);
    let Question::Finish(mut own) = finish(&[(1, b"mine")], &[]) else { unreachable!("it is one") };
    own.then = Some(Box::new(move |tid| {
        let cached = view.cache().load_before(Oid(1), Tid::MAX).map(|own| own.serial);
        *told.lock().unwrap() = Some((tid, view.last_tid(), cached));
    }));
    talk.ask(Question::Finish(own), 0);
    talk.hear(talk.sent().reply(3, &tid(8))).unwrap();
    assert_eq!(*seen.lock().unwrap(), Some((Tid(8), Tid(7), Some(Tid(8)))));
    assert_eq!(talk.last(), 8);
}

#[test]
fn whoever_waits_when_a_session_ends_is_told_and_nobody_twice() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    talk.load(1, Tid::MAX, 0);
    talk.load(1, Tid::MAX, 1);
    talk.ask(Question::Loads { oids: vec![Oid(1), Oid(2), Oid(3)], before: Tid::MAX }, 2);
    talk.ask(Question::Call(Request::Ping), 3);
    talk.ask(finish(&[], &[]), 4);
    talk.session.put(Order::any(Question::Call(Request::Ping)), None);
    talk.hear(talk.sent().load(2, Tid::MAX, (b"two", 4, None))).unwrap();
    talk.session.abandon(&ClientError::Closed);
    let mut told: Vec<u32> = Vec::new();
    for (waiter, outcome) in talk.answers() {
        assert!(matches!(outcome, Err(ClientError::Closed)));
        told.push(waiter);
    }
    told.sort_unstable();
    assert_eq!(told, [0, 1, 2, 3, 4]);
    assert!(!talk.session.is_waiting());
}
