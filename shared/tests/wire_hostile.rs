//! Messages that no client of ZEO would send: refused, whatever they claim, and within bounds.

use zeoring_shared::wire::request::{Incoming, Request, decode_call};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, NODES_MAX, WireError, msgpack, pickle};

/// Which kind of refusal is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Why {
    Truncated,
    Trailing,
    Forbidden,
    Global,
    Malformed,
    Limit,
    UnknownMethod,
    Argument,
}

fn why(error: &WireError) -> Option<Why> {
    Some(match error {
        WireError::Truncated(_) => Why::Truncated,
        WireError::Trailing(_) => Why::Trailing,
        WireError::Forbidden(_) => Why::Forbidden,
        WireError::Global(_) => Why::Global,
        WireError::Malformed(_) => Why::Malformed,
        WireError::Limit(_) => Why::Limit,
        WireError::UnknownMethod(_) => Why::UnknownMethod,
        WireError::Argument { .. } => Why::Argument,
        _ => return None,
    })
}

fn repeated(count: usize, part: &[u8], end: &[u8]) -> Vec<u8> {
    let mut bytes = part.repeat(count);
    bytes.extend_from_slice(end);
    bytes
}

const MANY: usize = 1_000_000;

#[test]
fn msgpack_that_is_too_deep_too_much_or_no_data_is_refused() {
    let cases: Vec<(&str, Vec<u8>, Why)> = vec![
        ("a million sequences in each other", repeated(MANY, b"\x91", b"\xc0"), Why::Limit),
        ("a million dictionaries in each other", repeated(MANY, b"\x81\xa1k", b"\xc0"), Why::Limit),
        ("seventeen sequences in each other", repeated(17, b"\x91", b"\xc0"), Why::Limit),
        (
            "a megabyte of empty dictionaries",
            [&b"\xdd\0\x0f\x42\x40"[..], &[0x80; MANY]].concat(),
            Why::Limit,
        ),
        ("a sequence of 2^32 - 1", b"\xdd\xff\xff\xff\xff\xc0".to_vec(), Why::Truncated),
        ("a sequence of 2^16 - 1", b"\xdc\xff\xff\xc0".to_vec(), Why::Truncated),
        ("a dictionary of 2^32 - 1", b"\xdf\xff\xff\xff\xff\xa1k\xc0".to_vec(), Why::Truncated),
        ("a dictionary of 2^16 - 1", b"\xde\xff\xff\xa1k\xc0".to_vec(), Why::Truncated),
        ("bytes of 2^32 - 1", b"\xc6\xff\xff\xff\xff\0".to_vec(), Why::Truncated),
        ("text of 2^32 - 1", b"\xdb\xff\xff\xff\xff\0".to_vec(), Why::Truncated),
        ("a time stamp", b"\xd6\xff\0\0\0\0".to_vec(), Why::Forbidden),
        ("an extension of one byte", b"\xd4\x01\0".to_vec(), Why::Forbidden),
        ("an extension of sixteen", [&b"\xd8\x01"[..], &[0; 16]].concat(), Why::Forbidden),
        ("a long extension", b"\xc9\0\0\0\x01\x01\0".to_vec(), Why::Forbidden),
        ("a byte without a meaning", b"\xc1".to_vec(), Why::Malformed),
        ("text that is not UTF-8", b"\xa2\xc3\x28".to_vec(), Why::Malformed),
        ("a surrogate", b"\xa3\xed\xa0\x80".to_vec(), Why::Malformed),
        ("a key twice", b"\x82\xa1k\x01\xa1k\x02".to_vec(), Why::Forbidden),
        ("a number for a key", b"\x81\x01\x02".to_vec(), Why::Forbidden),
        ("a sequence for a key", b"\x81\x90\x02".to_vec(), Why::Forbidden),
        ("two values", b"\xc0\xc0".to_vec(), Why::Trailing),
        ("nothing", Vec::new(), Why::Truncated),
    ];
    for (name, bytes, expected) in cases {
        let error = msgpack::decode(&bytes).unwrap_err();
        assert_eq!(why(&error), Some(expected), "{name}: {error}");
    }
    assert!(msgpack::decode(&repeated(16, b"\x91", b"\xc0")).is_ok(), "sixteen are allowed");
    assert!(msgpack::decode(b"\x82\xa1k\x01\xc4\x01k\x02").is_ok(), "text and bytes differ");
}

#[test]
fn a_pickle_that_is_more_than_data_is_refused() {
    let cases: &[(&str, &[u8], Why)] = &[
        ("os.system", b"cos\nsystem\nX\x02\0\0\0id\x85R.", Why::Global),
        ("a name that is not called", b"cbuiltins\neval\n.", Why::Global),
        ("a name from the list, for a value", b"cbuiltins\nbytes\n.", Why::Malformed),
        ("a name within a list", b"]cbuiltins\nbytes\na.", Why::Forbidden),
        ("a name within a dictionary", b"}cbuiltins\nbytes\nNs.", Why::Forbidden),
        ("a call of a value", b"X\x01\0\0\0f)R.", Why::Forbidden),
        ("bytes of a number", b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.", Why::Forbidden),
        (
            "an encoding that is not latin-1",
            b"c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.",
            Why::Forbidden,
        ),
        (
            "text that latin-1 does not have",
            b"c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R.",
            Why::Malformed,
        ),
        (
            "a reconstruction of something else",
            b"ccopyreg\n_reconstructor\ncbuiltins\nbytes\ncbuiltins\nbytes\nC\0\x87R.",
            Why::Forbidden,
        ),
        ("a state of a number", b"K\x01}b.", Why::Forbidden),
        ("a Prefix without a state", b"cZopeUndo.Prefix\nPrefix\n)\x81.", Why::Malformed),
        (
            "a Prefix of numbers",
            b"cZopeUndo.Prefix\nPrefix\n)\x81}(X\x06\0\0\0lengthK\x01X\x04\0\0\0path]K\x01aub.",
            Why::Malformed,
        ),
        ("EXT1", b"\x82\x01.", Why::Forbidden),
        ("EXT2", b"\x83\x01\0.", Why::Forbidden),
        ("EXT4", b"\x84\x01\0\0\0.", Why::Forbidden),
        ("PERSID", b"Pfoo\n.", Why::Forbidden),
        ("BINPERSID", b"NQ.", Why::Forbidden),
        ("OBJ", b"(cbuiltins\nbytes\no.", Why::Forbidden),
        ("INST", b"(ios\nsystem\n.", Why::Forbidden),
        ("NEWOBJ", b"cbuiltins\nint\n)\x81.", Why::Global),
        ("NEWOBJ_EX", b"cbuiltins\nbytes\n)}\x92.", Why::Forbidden),
        ("STACK_GLOBAL", b"X\x02\0\0\0osX\x06\0\0\0system\x93.", Why::Forbidden),
        ("DUP", b"N2\x86.", Why::Forbidden),
        ("POP", b"NN0.", Why::Forbidden),
        ("a set", b"\x8f.", Why::Forbidden),
        ("a bytearray", b"\x96\x01\0\0\0\0\0\0\0a.", Why::Forbidden),
        ("bytes by a length of eight", b"\x8e\x01\0\0\0\0\0\0\0a.", Why::Forbidden),
        ("text by a length of eight", b"\x8d\x01\0\0\0\0\0\0\0a.", Why::Forbidden),
        ("protocol 6", b"\x80\x06N.", Why::Forbidden),
        ("an opcode that there is not", b"\xff.", Why::Forbidden),
    ];
    for (name, bytes, expected) in cases {
        let error = pickle::decode(bytes).unwrap_err();
        assert_eq!(why(&error), Some(*expected), "{name}: {error}");
    }
}

#[test]
fn a_pickle_that_lies_about_lengths_or_its_own_stack_is_refused() {
    let digits = repeated(200_000, b"9", b"\n.");
    let cases: Vec<(&str, Vec<u8>, Why)> = vec![
        (
            "a frame past the end",
            b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.".to_vec(),
            Why::Malformed,
        ),
        ("a frame before the end", b"\x80\x04\x95\x01\0\0\0\0\0\0\0N.".to_vec(), Why::Malformed),
        ("bytes of 2^32 - 1", b"B\xff\xff\xff\xffabc.".to_vec(), Why::Truncated),
        ("text of 2^32 - 1", b"X\xff\xff\xff\xffabc.".to_vec(), Why::Truncated),
        ("an old string of 2^32 - 1", b"T\xff\xff\xff\xffabc.".to_vec(), Why::Truncated),
        ("an integer of ten bytes", [&b"\x8a\x0a"[..], &[1; 10], b"."].concat(), Why::Limit),
        (
            "an integer of a megabyte",
            [&b"\x8b\0\0\x10\0"[..], &[1; 1 << 20], b"."].concat(),
            Why::Limit,
        ),
        ("an integer of 2^32 - 1 bytes", b"\x8b\xff\xff\xff\xff\x01.".to_vec(), Why::Limit),
        (
            "nine bytes that are more than 64 bits",
            b"\x8a\x09\0\0\0\0\0\0\0\0\x01.".to_vec(),
            Why::Limit,
        ),
        ("INT of 200,000 digits", [b"I", &digits[..]].concat(), Why::Truncated),
        ("INT of 200 digits", [b"I", &repeated(200, b"9", b"\n.")[..]].concat(), Why::Limit),
        ("INT of no digits", b"I\n.".to_vec(), Why::Malformed),
        ("text that is not UTF-8", b"X\x02\0\0\0\xc3\x28.".to_vec(), Why::Malformed),
        ("a memo entry that is not there", b"h\x07.".to_vec(), Why::Malformed),
        ("two values", b"NN.".to_vec(), Why::Malformed),
        ("no value", b".".to_vec(), Why::Malformed),
        ("a mark that stays", b"(N.".to_vec(), Why::Malformed),
        ("bytes after the end", b"N.N.".to_vec(), Why::Trailing),
        ("no end", b"N".to_vec(), Why::Truncated),
        ("nothing", Vec::new(), Why::Truncated),
        ("a tuple of what is not there", b"N\x87.".to_vec(), Why::Malformed),
        ("a tuple of what is below a mark", b"N(N\x86.".to_vec(), Why::Malformed),
        (
            "names below a mark",
            b"cbuiltins\nbytes\n(cbuiltins\nbytes\n\x86t.".to_vec(),
            Why::Malformed,
        ),
        ("a memo entry of what is below a mark", b"N(q\0t.".to_vec(), Why::Malformed),
        ("an append to what is below a mark", b"](Na.".to_vec(), Why::Malformed),
        ("items for a list", b"](NNu.".to_vec(), Why::Malformed),
        ("values for a dictionary", b"}(NNe.".to_vec(), Why::Malformed),
        ("a key without a value", b"}(Nu.".to_vec(), Why::Malformed),
        ("a list for a key", b"}]Ns.".to_vec(), Why::Forbidden),
        ("a list within a key", b"}]\x85Ns.".to_vec(), Why::Forbidden),
    ];
    for (name, bytes, expected) in cases {
        let error = pickle::decode(&bytes).unwrap_err();
        assert_eq!(why(&error), Some(expected), "{name}: {error}");
    }
}

#[test]
fn a_small_pickle_stays_a_small_value() {
    let memo_key = |key: u32| [&b"r"[..], &key.to_le_bytes()].concat();
    let tuple = repeated(NODES_MAX / 2 - 2, b"N", b"t");
    let same_tuple_kept: Vec<u8> = (0..9_000).flat_map(memo_key).collect();
    let laughs: Vec<u8> = (0..40_u8).flat_map(|n| [b'q', n, b'h', n, 0x86]).collect();
    let name = &b"cbuiltins\nbytes\nq\0"[..];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a million tuples in each other", repeated(MANY, b"\x85", b".")),
        ("tuples in each other by marks", repeated(MANY, b"(", b"N.")),
        ("seventeen tuples in each other", [&b"N"[..], &repeated(17, b"\x85", b".")].concat()),
        ("eighteen lists in each other", repeated(18, b"]", &repeated(17, b"a", b"."))),
        ("a million lists", repeated(MANY, b"]", b".")),
        ("a megabyte of empty dictionaries", [&b"("[..], &repeated(MANY, b"}", b"t.")].concat()),
        (
            "one tuple kept nine thousand times",
            [&b"("[..], &tuple, &same_tuple_kept, b"."].concat(),
        ),
        ("memo entry 2^26", [&b"N"[..], &memo_key(1 << 26), b"Nr\0\0\0\x04\x86h\0\x86."].concat()),
        ("twenty thousand memo entries", {
            let keys: Vec<u8> = (0..20_000).flat_map(memo_key).collect();
            [&b"N"[..], &keys, b"."].concat()
        }),
        ("twice the same, forty times over", [&b"N"[..], &laughs, b"."].concat()),
        ("a list in two places", b"]q\0h\0\x86.".to_vec()),
        ("a list within itself", b"]q\0h\0a.".to_vec()),
        ("a million names", [name, &repeated(MANY, b"h\0", b".")].concat()),
        ("names in each other", [name, &repeated(MANY, b"\x85", b".")].concat()),
        ("arguments in each other", [name, b"\x85", &repeated(MANY, b"h\0\x86", b".")].concat()),
    ];
    for (name, bytes) in cases {
        let error = pickle::decode(&bytes).unwrap_err();
        let refused = [Why::Limit, Why::Forbidden, Why::Malformed];
        assert!(why(&error).is_some_and(|why| refused.contains(&why)), "{name}: {error}");
    }
    let deep = [&b"N"[..], &repeated(16, b"\x85", b".")].concat();
    assert!(pickle::decode(&deep).is_ok(), "sixteen are allowed");
    let lent = [&b"Nr\0\0\0\x04"[..], b"j\0\0\0\x04\x86."].concat();
    assert_eq!(pickle::decode(&lent), Ok(Value::Tuple(vec![Value::None, Value::None])));
}

/// A message of four parts, with these opcodes or bytes for the name and the arguments.
fn call(codec: Codec, name: &str, arguments: &[u8]) -> Vec<u8> {
    let length = name.len() as u8;
    match codec {
        Codec::Msgpack => {
            [&b"\x94\x01\xc2\xd9"[..], &[length], name.as_bytes(), arguments].concat()
        }
        Codec::Pickle => {
            let start = &b"\x80\x03(K\x01\x89\x8c"[..];
            [start, &[length], name.as_bytes(), arguments, b"t."].concat()
        }
    }
}

#[test]
fn a_call_of_what_there_is_not_or_with_wrong_arguments_is_refused() {
    const OID: (&[u8], &[u8]) = (b"\xc4\x08\0\0\0\0\0\0\0\x05", b"C\x08\0\0\0\0\0\0\0\x05");
    // Name, arguments as msgpack and as a pickle, and why.
    let long = vec![b'u'; 70_000];
    let long_user = (
        [&b"\x96\x01\xc6\0\x01\x11\x70"[..], &long, b"\xa0\x80\xc0\xa1 "].concat(),
        [&b"(K\x01B\x70\x11\x01\0"[..], &long, b"C\0}NX\x01\0\0\0 t"].concat(),
    );
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, Why)> = vec![
        ("no_such_method", b"\x90".to_vec(), b")".to_vec(), Why::UnknownMethod),
        ("__class__", b"\x90".to_vec(), b")".to_vec(), Why::UnknownMethod),
        ("__init__", b"\x90".to_vec(), b")".to_vec(), Why::UnknownMethod),
        ("", b"\x90".to_vec(), b")".to_vec(), Why::UnknownMethod),
        (".reply", b"\xc0".to_vec(), b"N".to_vec(), Why::Malformed),
        (".reply", b"\x90".to_vec(), b")".to_vec(), Why::UnknownMethod),
        ("ping", b"\x91\x01".to_vec(), b"K\x01\x85".to_vec(), Why::Argument),
        ("ping", b"\x01".to_vec(), b"K\x01".to_vec(), Why::Malformed),
        ("getTid", b"\x90".to_vec(), b")".to_vec(), Why::Argument),
        ("getTid", b"\x91\xc4\x03abc".to_vec(), b"C\x03abc\x85".to_vec(), Why::Argument),
        (
            "getTid",
            b"\x91\xa8abcdefgh".to_vec(),
            b"X\x08\0\0\0abcdefgh\x85".to_vec(),
            Why::Argument,
        ),
        (
            "loadBefore",
            [b"\x92", OID.0, b"\x07"].concat(),
            [OID.1, b"K\x07\x86"].concat(),
            Why::Argument,
        ),
        (
            "loadBefore",
            [b"\x93", OID.0, OID.0, OID.0].concat(),
            [OID.1, OID.1, OID.1, b"\x87"].concat(),
            Why::Argument,
        ),
        ("storea", [b"\x91", OID.0].concat(), [OID.1, b"\x85"].concat(), Why::Argument),
        (
            "storea",
            [b"\x94", OID.0, OID.0, b"\xa1d\x01"].concat(),
            [b"(", OID.1, OID.1, b"X\x01\0\0\0dK\x01t"].concat(),
            Why::Argument,
        ),
        ("vote", b"\x91\xa1x".to_vec(), b"X\x01\0\0\0x\x85".to_vec(), Why::Argument),
        ("new_oids", b"\x91\xa1x".to_vec(), b"X\x01\0\0\0x\x85".to_vec(), Why::Argument),
        ("register", b"\x91\xa11".to_vec(), b"X\x01\0\0\x001\x85".to_vec(), Why::Argument),
        ("register", b"\x92\x01\xc2".to_vec(), b"K\x01\x89\x86".to_vec(), Why::Argument),
        ("iterator_gc", b"\x91\x01".to_vec(), b"K\x01\x85".to_vec(), Why::Argument),
        ("iterator_gc", b"\x91\x91\xa1x".to_vec(), b"]X\x01\0\0\0xa\x85".to_vec(), Why::Argument),
        (
            "undoa",
            b"\x92\xc4\x0cAAAAAAAAAA!=\x01".to_vec(),
            b"C\x0cAAAAAAAAAA!=K\x01\x86".to_vec(),
            Why::Argument,
        ),
        ("tpc_begin", long_user.0, long_user.1, Why::Argument),
        (
            "tpc_begin",
            b"\x96\x01\xa0\xa0\x80\xc0\xa1c".to_vec(),
            b"(K\x01C\0C\0}NX\x01\0\0\0ct".to_vec(),
            Why::Argument,
        ),
        (
            "tpc_begin",
            b"\x96\x01\xa0\xa0\x80\xc0\xa2 p".to_vec(),
            b"(K\x01C\0C\0}NX\x02\0\0\0 pt".to_vec(),
            Why::Argument,
        ),
        (
            "tpc_begin",
            b"\x96\x01\xa0\xa0\x80\x05\xa1 ".to_vec(),
            b"(K\x01C\0C\0}K\x05X\x01\0\0\0 t".to_vec(),
            Why::Argument,
        ),
    ];
    for (name, packed, pickled, expected) in cases {
        for (codec, arguments) in [(Codec::Msgpack, packed), (Codec::Pickle, pickled)] {
            let error = decode_call(codec, &call(codec, name, &arguments)).unwrap_err();
            assert_eq!(why(&error), Some(expected), "{name} in {codec:?}: {error}");
        }
    }
}

#[test]
fn a_message_that_has_not_four_parts_of_the_right_kinds_is_refused() {
    let cases: [(Codec, &[u8]); 10] = [
        (Codec::Msgpack, b"\xc0"),
        (Codec::Msgpack, b"\x93\x01\xc2\xa4ping"),
        (Codec::Msgpack, b"\x95\x01\xc2\xa4ping\x90\x90"),
        (Codec::Msgpack, b"\x94\x01\xc0\xa4ping\x90"),
        (Codec::Msgpack, b"\x94\x01\xc2\xc4\x04ping\x90"),
        (Codec::Pickle, b"N."),
        (Codec::Pickle, b")."),
        (Codec::Pickle, b"(K\x01\x89X\x04\0\0\0pingt."),
        (Codec::Pickle, b"(K\x01NX\x04\0\0\0ping)t."),
        (Codec::Pickle, b"(K\x01\x89C\x04ping)t."),
    ];
    for (codec, body) in cases {
        let error = decode_call(codec, body).unwrap_err();
        assert_eq!(why(&error), Some(Why::Malformed), "{body:?}: {error}");
    }
}

#[test]
fn what_an_unknown_method_is_called_is_told_in_few_words() {
    let name = "x".repeat(200);
    for codec in [Codec::Msgpack, Codec::Pickle] {
        let arguments: &[u8] = if codec == Codec::Msgpack { b"\x90" } else { b")" };
        let error = decode_call(codec, &call(codec, &name, arguments)).unwrap_err();
        assert_eq!(error, WireError::UnknownMethod("x".repeat(80)));
    }
    let global = [&b"c"[..], &[b'm'; 150], b"\n", &[b'n'; 150], b"\n."].concat();
    let Err(WireError::Global(name)) = pickle::decode(&global) else {
        panic!("that name is not known");
    };
    assert_eq!(name.len(), 161);
}

#[test]
fn forms_of_other_picklers_are_read_as_the_data_that_they_are() {
    let bytes = Value::Bytes(b"a\xff".into());
    let cases: &[(&[u8], Value<'_>)] = &[
        (b"c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R.", bytes.clone()),
        (b"czodbpickle\nbinary\nC\x02a\xff\x85R.", bytes.clone()),
        (
            b"ccopy_reg\n_reconstructor\n(czodbpickle\nbinary\nc__builtin__\nstr\nU\x02a\xfftR.",
            bytes,
        ),
        (b"cbuiltins\nbytes\n)R.", Value::Bytes(b"".into())),
        (b"\x80\x04\x95\x08\0\0\0\0\0\0\0\x8c\x01a\x94K\x01\x86.", {
            Value::Tuple(vec![Value::Str("a".into()), Value::Int(1)])
        }),
        (b"(lp0\nI7\naL8L\naI01\na.", {
            Value::List(vec![Value::Int(7), Value::Int(8), Value::Bool(true)])
        }),
        (b"(dX\x01\0\0\0aI7\ns.", Value::Dict(vec![(Value::Str("a".into()), Value::Int(7))])),
        (b"\x8a\0.", Value::Int(0)),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0.", Value::Unsigned(u64::MAX)),
        (b"\x8a\x08\0\0\0\0\0\0\0\x80.", Value::Int(i64::MIN)),
    ];
    for (bytes, value) in cases {
        assert_eq!(pickle::decode_stored(bytes).as_ref(), Ok(value), "{bytes:?}");
    }
    assert_eq!(pickle::decode_stored(b""), Ok(Value::Dict(Vec::new())));
}

#[test]
fn an_extension_is_stored_as_a_pickle_that_python_reads_without_importing() {
    let long = "k".repeat(300);
    let entry = [&b"\x81\xda\x01\x2c"[..], long.as_bytes(), b"\xc4\x01v"].concat();
    let body = [&b"\x94\0\xc3\xa9tpc_begin\x96\x01\xa0\xa0"[..], &entry, b"\xc0\xa1 "].concat();
    let Ok(Incoming::Call(call)) = decode_call(Codec::Msgpack, &body) else {
        panic!("a dictionary is an extension");
    };
    let Request::TpcBegin { extension, .. } = call.request else {
        panic!("it begins a transaction");
    };
    let entry = (Value::Str(long.into()), Value::Bytes(b"v".into()));
    assert_eq!(pickle::decode_stored(&extension), Ok(Value::Dict(vec![entry])));
}
