//! Values of any shape, written and read in both codecs.

use proptest::prelude::*;
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, msgpack, pickle};

/// Values that both codecs can say, and hear again as they were.
fn values(codec: Codec) -> impl Strategy<Value = Value<'static>> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-70_000..70_000_i64).prop_map(Value::Int),
        (i64::MAX as u64 + 1..).prop_map(Value::Unsigned),
        any::<f64>().prop_filter("NaN is not itself", |n| !n.is_nan()).prop_map(Value::Float),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Value::Bytes(bytes.into())),
        ".{0,80}".prop_map(|text| Value::Str(text.into())),
    ];
    leaf.prop_recursive(6, 64, 20, move |inner| {
        let sequence = prop::collection::vec(inner.clone(), 0..20);
        let entries = prop::collection::btree_map("[a-z]{0,6}", inner, 0..18);
        let entries = entries.prop_map(|entries| {
            entries.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect()
        });
        prop_oneof![
            sequence.clone().prop_map(Value::Tuple),
            sequence.prop_map(move |values| match codec {
                Codec::Pickle => Value::List(values),
                Codec::Msgpack => Value::Tuple(values),
            }),
            entries.prop_map(Value::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn a_pickled_value_is_read_as_it_was(value in values(Codec::Pickle)) {
        let mut bytes = Vec::new();
        pickle::encode(&value, &mut bytes);
        prop_assert_eq!(pickle::decode(&bytes), Ok(value));
    }

    #[test]
    fn a_packed_value_is_read_as_it_was(value in values(Codec::Msgpack)) {
        let mut bytes = Vec::new();
        msgpack::encode(&value, &mut bytes);
        prop_assert_eq!(msgpack::decode(&bytes), Ok(value));
    }
}
