//! Greeting, register, and the comparison of what is remembered with what the server knows.

use super::*;

/// A session that is registered and compares; its next call has the number 2.
fn verifying(view: &Arc<View>, codec: Codec, theirs: u64) -> Talk {
    let mut talk = Talk::with(codec, view);
    talk.register(theirs);
    talk
}

#[test]
fn a_server_is_answered_in_msgpack_unless_it_is_known_not_to_take_it() {
    let cases = [
        (None, Codec::Pickle, b"M5"),
        (None, Codec::Msgpack, b"M5"),
        (Some(Codec::Pickle), Codec::Pickle, b"Z5"),
        // A server that was replaced by a newer one.
        (Some(Codec::Pickle), Codec::Msgpack, b"M5"),
    ];
    for (codec, announced, answer) in cases {
        let hello = Hello { storage: "main".to_owned(), access: Access::Read, label: None, codec };
        let mut session: Session<u32> = Session::new(hello, view());
        assert_eq!(session.output(), b"", "the server speaks first");
        session.receive_from(&mut Inbound::new(), &Sent::new(announced).greeting().bytes).unwrap();
        let first = split_frame(session.output(), 64).unwrap().unwrap();
        assert_eq!(first.body, answer);
        let register = split_frame(first.rest, wire::FRAME_MAX).unwrap().unwrap();
        let Ok(Incoming::Call(call)) = decode_call(session.codec(), register.body) else {
            panic!("a call follows the answer");
        };
        let storage = "main".into();
        assert_eq!(call.request, Request::Register { storage, read_only: true });
        assert_eq!(session.announced(), Some(announced));
    }
}

#[test]
fn a_server_may_refuse_writes_and_be_asked_again_to_read() {
    for codec in CODECS {
        let mut talk = Talk::new(codec);
        talk.hear(talk.sent().greeting().error(1, &ErrorReply::read_only())).unwrap();
        let Stage::Refused(error) = talk.session.stage() else { panic!("{:?}", talk.session) };
        assert!(error.is_read_only());
        talk.calls();
        talk.session.register_read_only();
        assert_eq!(talk.calls(), ["register"]);
        talk.hear(talk.sent().reply(2, &tid(5))).unwrap();
        assert_eq!(talk.session.stage(), &Stage::Registered(Tid(5)));
        assert!(talk.session.is_read_only());
    }
}

#[test]
fn an_empty_cache_begins_where_the_server_is() {
    for codec in CODECS {
        let mut talk = Talk::new(codec);
        talk.register(7);
        assert_eq!(talk.last(), 0, "a server that was not chosen changes nothing");
        talk.session.verify().unwrap();
        assert_eq!(talk.calls(), ["get_info"]);
        talk.hear(talk.sent().reply(2, &info())).unwrap();
        talk.is_ready();
        assert_eq!(talk.last(), 7);
    }
}

#[test]
fn what_changed_while_nobody_listened_is_forgotten_before_it_is_seen() {
    for (codec, is_live) in CODECS.into_iter().flat_map(|codec| [(codec, false), (codec, true)]) {
        let view = remembering(5, 1, is_live);
        view.loaded(Oid(2), &Revision { data: Bytes::new(), serial: Tid(4), end: None });
        let mut talk = verifying(&view, codec, 9);
        talk.session.verify().unwrap();
        assert_eq!(talk.calls(), ["iterator_start"]);
        talk.hear(talk.sent().reply(2, &Value::Int(3))).unwrap();
        assert_eq!(talk.calls(), ["iterator_next"]);
        talk.hear(talk.sent().reply(3, &entry(5, " "))).unwrap();
        assert_eq!(talk.calls(), ["iterator_gc", "getInvalidations"]);
        assert_eq!(talk.last(), 5);
        talk.hear(talk.sent().reply(4, &changes(9, &[1]))).unwrap();
        assert_eq!((talk.last(), talk.cached(1)), (9, None));
        assert!(talk.cached(2).is_some(), "what did not change is kept");
        talk.hear(talk.sent().reply(5, &info())).unwrap();
        talk.is_ready();
        let heard = if is_live { vec![9] } else { vec![] };
        assert_eq!(talk.heard(), heard, "only who has seen something is told that it changed");
    }
}

#[test]
fn a_server_that_does_not_remember_what_changed_empties_the_cache() {
    for is_live in [false, true] {
        let view = remembering(5, 1, is_live);
        let mut talk = verifying(&view, Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().reply(2, &Value::Int(3)).reply(3, &entry(5, " "));
        // Commits go on meanwhile.
        let sent = sent.invalidation(10, &[4]).reply(4, &Value::None).reply(5, &info());
        talk.hear(sent).unwrap();
        talk.is_ready();
        assert_eq!((talk.last(), talk.cached(1)), (10, None));
        if is_live {
            let heard = talk.view.take_invalidations();
            assert_eq!(heard, Invalidated::Everything { until: Tid(10) });
        }
    }
}

#[test]
fn an_invalidation_during_the_comparison_is_neither_lost_nor_told_twice() {
    // Wherever it comes: before the answer that includes it, and after the one that does not.
    for (place, until, heard) in [(0, 10, [10]), (1, 10, [10]), (2, 10, [10]), (3, 9, [10])] {
        for codec in CODECS {
            let view = remembering(5, 1, true);
            let mut talk = verifying(&view, codec, 9);
            talk.session.verify().unwrap();
            let oids: &[u64] = if until == 10 { &[1] } else { &[] };
            let answers: [&dyn Fn(Sent) -> Sent; 4] = [
                &|sent| sent.reply(2, &Value::Int(3)),
                &|sent| sent.reply(3, &entry(5, " ")),
                &|sent| sent.reply(4, &changes(until, oids)),
                &|sent| sent.reply(5, &info()),
            ];
            for (index, answer) in answers.iter().enumerate() {
                if index == place {
                    talk.hear(talk.sent().invalidation(10, &[1])).unwrap();
                }
                talk.hear(answer(talk.sent())).unwrap();
            }
            talk.is_ready();
            assert_eq!((talk.last(), talk.cached(1)), (10, None), "at {place}");
            assert_eq!(talk.heard(), heard, "at {place}");
            talk.hear(talk.sent().invalidation(11, &[])).unwrap();
            assert_eq!(talk.heard(), [11]);
        }
    }
}

#[test]
fn invalidations_out_of_order_while_coming_up_end_the_session() {
    for (first, second) in [(11, 10), (11, 11)] {
        let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().invalidation(first, &[2]).invalidation(second, &[1]);
        let sent = sent.reply(2, &Value::Int(3)).reply(3, &entry(5, " "));
        let heard = talk.hear(sent.reply(4, &changes(9, &[])).reply(5, &info()));
        assert!(matches!(heard, Err(SessionError::BackInTime { .. })), "{heard:?}");
    }
}

#[test]
fn a_list_of_changes_that_ends_before_the_connection_began_leaves_nothing_remembered() {
    // What was committed after it and up to 9 is neither in the list nor told.
    for until in [5, 7] {
        let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().reply(2, &Value::Int(3)).reply(3, &entry(5, " "));
        talk.hear(sent.reply(4, &changes(until, &[])).reply(5, &info())).unwrap();
        talk.is_ready();
        assert_eq!((talk.last(), talk.cached(1)), (until, None));
    }
}

#[test]
fn a_list_of_changes_that_ends_before_what_was_seen_is_refused() {
    for until in [0, 4] {
        let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().reply(2, &Value::Int(3)).reply(3, &entry(5, " "));
        let heard = talk.hear(sent.reply(4, &changes(until, &[])).reply(5, &info()));
        assert!(matches!(heard, Err(SessionError::BackInTime { .. })), "{until}: {heard:?}");
        assert_eq!(talk.last(), 5);
    }
}

#[test]
fn a_server_that_went_back_in_time_is_refused_by_who_has_seen_more() {
    let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 4);
    let verified = talk.session.verify();
    let expected = (Tid(5), Tid(4));
    let Err(SessionError::BackInTime { ours, theirs }) = verified else { panic!("{verified:?}") };
    assert_eq!((ours, theirs), expected);
    assert_eq!(talk.last(), 5);

    // Nobody has seen what is only in the cache's file.
    let mut talk = verifying(&remembering(5, 1, false), Codec::Msgpack, 4);
    talk.session.verify().unwrap();
    talk.hear(talk.sent().reply(2, &info())).unwrap();
    talk.is_ready();
    assert_eq!((talk.last(), talk.cached(1)), (4, None));
}

#[test]
fn a_history_that_lacks_what_was_seen_is_another_one() {
    for next in [Value::None, entry(6, " ")] {
        let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let heard = talk.hear(talk.sent().reply(2, &Value::Int(3)).reply(3, &next));
        assert!(matches!(heard, Err(SessionError::AnotherHistory { ours: Tid(5) })), "{heard:?}");

        let mut talk = verifying(&remembering(5, 1, false), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().reply(2, &Value::Int(3)).reply(3, &next).reply(4, &info());
        talk.hear(sent).unwrap();
        talk.is_ready();
        assert_eq!((talk.last(), talk.cached(1)), (9, None));
    }
}

#[test]
fn a_pack_may_drop_what_was_seen_and_costs_the_cache() {
    for is_live in [false, true] {
        let mut talk = verifying(&remembering(5, 1, is_live), Codec::Msgpack, 9);
        talk.session.verify().unwrap();
        let sent = talk.sent().reply(2, &Value::Int(3)).reply(3, &entry(7, "p"));
        talk.hear(sent.reply(4, &info())).unwrap();
        talk.is_ready();
        assert_eq!((talk.last(), talk.cached(1)), (9, None));
        let heard = talk.view.take_invalidations();
        let expected = match is_live {
            true => Invalidated::Everything { until: Tid(9) },
            false => Invalidated::Transactions(vec![]),
        };
        assert_eq!(heard, expected);
    }
}

#[test]
fn who_saw_an_empty_database_may_come_back_to_one_that_is_not() {
    for codec in CODECS {
        let first = Talk::ready(codec, 0);
        let mut talk = verifying(&first.view, codec, 9);
        talk.session.verify().unwrap();
        // There is no transaction 0 to ask for.
        assert_eq!(talk.calls(), ["getInvalidations"]);
        talk.hear(talk.sent().reply(2, &changes(9, &[1])).reply(3, &info())).unwrap();
        talk.is_ready();
        assert_eq!((talk.last(), talk.heard()), (9, vec![9]));
    }
}

#[test]
fn a_storage_without_iteration_is_asked_what_changed() {
    let mut talk = verifying(&remembering(5, 1, true), Codec::Msgpack, 9);
    talk.session.verify().unwrap();
    let error = ErrorReply::attribute_error("iterator_start");
    talk.hear(talk.sent().error(2, &error)).unwrap();
    assert_eq!(talk.calls(), ["iterator_start", "getInvalidations"]);
    // One that cannot tell that either costs the cache, not the connection.
    talk.hear(talk.sent().error(3, &ErrorReply::exception("no")).reply(4, &info())).unwrap();
    talk.is_ready();
    assert_eq!((talk.last(), talk.cached(1)), (9, None));
}

#[test]
fn a_server_that_says_more_than_fits_before_the_session_is_up_is_left() {
    let mut talk = verifying(&view(), Codec::Msgpack, 9);
    talk.session.verify().unwrap();
    let many = vec![1; 300_000];
    for number in 10.. {
        if let Err(error) = talk.hear(talk.sent().invalidation(number, &many)) {
            assert!(matches!(error, SessionError::TooMuchEarly { .. }), "{error:?}");
            return assert!(number < 20);
        }
    }
}
