//! However the bytes are cut on their way, they mean the same.

use proptest::prelude::*;

use super::*;

/// All that a caller, the cache and the application learn.
type Result_ = (Vec<String>, Vec<u64>, Vec<Option<(Vec<u8>, u64, Option<u64>)>>, u64);

/// A conversation of everything: what the server says, once the client has asked all.
fn conversation(codec: Codec) -> Vec<u8> {
    let late = (&b"late"[..], 4, None);
    Sent::new(codec)
        .load(1, Tid::MAX, (b"one", 4, None))
        .invalidation(6, &[1, 2])
        .load(2, Tid::MAX, late)
        .load_error(3, Tid::MAX)
        .load_none(4, Tid::MAX)
        .notice("info", &Value::Tuple(vec![Value::Dict(vec![])]))
        .reply(3, &tid(7))
        .invalidation(8, &[])
        .reply(4, &Value::List(vec![eight(7), eight(8), eight(9)]))
        .reply(5, &Value::None)
        .load(2, Tid::MAX, (b"two", 6, None))
        .invalidation(9, &[5])
        .bytes
}

fn result(codec: Codec, cuts: &[usize], through: impl Fn(&mut Talk, &[u8])) -> Result_ {
    let mut talk = Talk::ready(codec, 5);
    for (oid, waiter) in [(1, 1), (2, 2), (3, 3), (4, 4)] {
        talk.load(oid, Tid::MAX, waiter);
    }
    talk.ask(finish(&[(5, b"mine")], &[]), 5);
    talk.ask(Question::Call(Request::NewOids { count: 3 }), 6);
    talk.ask(Question::Call(Request::Ping), 7);
    let bytes = conversation(codec);
    let mut rest = &bytes[..];
    for &cut in cuts {
        let (part, after) = rest.split_at(cut.min(rest.len()));
        through(&mut talk, part);
        rest = after;
    }
    through(&mut talk, rest);
    assert!(!talk.session.is_waiting());
    let answers = talk.answers().iter().map(|answer| format!("{answer:?}")).collect();
    (answers, talk.heard(), (1..6).map(|oid| talk.cached(oid)).collect(), talk.last())
}

fn elsewhere(talk: &mut Talk, part: &[u8]) {
    talk.session.receive_from(&mut talk.inbound, part).unwrap();
}

fn in_place(talk: &mut Talk, part: &[u8]) {
    talk.inbound.add(part);
    talk.session.receive(&mut talk.inbound).unwrap();
}

#[test]
fn a_conversation_that_comes_byte_by_byte_means_the_same() {
    for codec in CODECS {
        let whole = result(codec, &[], elsewhere);
        assert_eq!((whole.1.clone(), whole.3), (vec![6, 8, 9], 9));
        assert_eq!(whole.0.len(), 7);
        let length = conversation(codec).len();
        for cut in 0..length {
            assert_eq!(result(codec, &[cut], elsewhere), whole, "cut at {cut}");
            assert_eq!(result(codec, &[cut], in_place), whole, "cut at {cut}");
        }
        assert_eq!(result(codec, &vec![1; length], elsewhere), whole);
        assert_eq!(result(codec, &vec![1; length], in_place), whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_conversation_cut_anywhere_means_the_same(cuts in prop::collection::vec(0_usize..60, 0..40)) {
        for codec in CODECS {
            let whole = result(codec, &[], elsewhere);
            prop_assert_eq!(&result(codec, &cuts, elsewhere), &whole);
            prop_assert_eq!(&result(codec, &cuts, in_place), &whole);
        }
    }

    #[test]
    fn bytes_changed_on_their_way_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for codec in CODECS {
            let mut talk = Talk::ready(codec, 5);
            for oid in 1..5 {
                talk.load(oid, Tid::MAX, oid as u32);
            }
            talk.ask(finish(&[(5, b"mine")], &[]), 5);
            talk.ask(Question::Call(Request::NewOids { count: 3 }), 6);
            talk.ask(Question::Call(Request::Ping), 7);
            let mut bytes = conversation(codec);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if talk.session.receive_from(&mut talk.inbound, &bytes).is_err() {
                talk.session.abandon(&ClientError::Closed);
                prop_assert_eq!(talk.answers().len(), 7);
            }
        }
    }

    #[test]
    fn any_bytes_at_all_end_a_session_or_wait_for_more(
        bytes in prop::collection::vec(any::<u8>(), 0..300), point in 0_usize..2,
    ) {
        for codec in CODECS {
            let mut talk = if point == 0 { Talk::new(codec) } else { Talk::ready(codec, 5) };
            let _ = talk.session.receive_from(&mut talk.inbound, &bytes);
            let framed = talk.sent().raw(&[&bytes[..], &[0]].concat());
            let mut talk = if point == 0 { Talk::new(codec) } else { Talk::ready(codec, 5) };
            let _ = talk.hear(framed);
        }
    }
}
