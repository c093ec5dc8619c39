//! The RFC's test vectors, what is answered and what is not, and strangers' bytes.

use super::*;
use proptest::prelude::*;
use stun_rs::StunAttributeType;
use stun_rs::attributes::discovery::{Padding, ResponsePort};
use stun_rs::attributes::stun::MappedAddress;

/// RFC 5769 section 2.2: the hex of a sample response by IPv4, 192.0.2.1:32853.
const SAMPLE4: &str = "0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 00200008 0001a147 \
    e112a643 00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96";
/// Section 2.3: by IPv6, [2001:db8:1234:5678:11:2233:4455:6677]:32853.
const SAMPLE6: &str = "01010048 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 00200014 0002a147 \
    0113a9faa5d3f179bc25f4b5bed2b9d9 00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c";
/// Section 2.1: a request with USERNAME and the like, which are ICE's.
const SAMPLE_REQUEST: &str = "00010058 2112a442 b7e7a701bc34d686fa87dfae 80220010 5354554e207465737420636c69656e74 \
    00240004 6e0001ff 80290008 932ff9b151263b36 00060009 6576746a3a68367659202020 \
    00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004 e57a3bcf";
const ID: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const BOTH: [(&str, &str); 2] = [("192.0.2.9:4000", "0.0.0.0:444"), ("[2001:db8::9]:4000", "[::]:444")];
const CHANGES: [Change; 4] = [
    Change { ip: false, port: false },
    Change { ip: false, port: true },
    Change { ip: true, port: false },
    Change { ip: true, port: true },
];

#[test]
fn the_vectors_of_rfc_5769_are_read() {
    let four = Response { id: ID, mapped: address("192.0.2.1:32853"), other: None };
    assert_eq!(parse_response(&hex(SAMPLE4)), Some(four));
    let mapped = address("[2001:db8:1234:5678:11:2233:4455:6677]:32853");
    assert_eq!(parse_response(&hex(SAMPLE6)), Some(Response { id: ID, mapped, other: None }));
    // The request is a true one, and asks for what relays do not do.
    assert!(decode(&hex(SAMPLE_REQUEST), MessageClass::Request).is_some());
    assert_eq!(answer(&hex(SAMPLE_REQUEST), address("192.0.2.1:1"), None), None);
    // A FINGERPRINT is looked at.
    let mut wrong = hex(SAMPLE4);
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(parse_response(&wrong), None);
}

#[test]
fn a_request_is_answered_with_all_there_is_and_no_more_bytes() {
    for (from, other) in BOTH.map(|(f, o)| (address(f), address(o))) {
        for change in CHANGES {
            let asked = request(ID, change);
            assert_eq!(asked.len(), if change == Change::default() { 68 } else { 76 });
            let answered = answer(&asked, from, Some(other));
            if change.ip {
                assert_eq!(answered, None);
                continue;
            }
            let answered = answered.unwrap();
            assert_eq!(answered.from_other_port, change.port);
            assert!(answered.bytes.len() <= asked.len());
            let expected = Response { id: ID, mapped: from, other: Some(other) };
            assert_eq!(parse_response(&answered.bytes), Some(expected));
            // Nobody answers an answer: two servers do not talk for ever.
            assert_eq!(answer(&answered.bytes, from, Some(other)), None);
        }
        let alone = answer(&request(ID, Change::default()), from, None).unwrap();
        assert_eq!(parse_response(&alone.bytes).unwrap().other, None);
        assert_eq!(answer(&request(ID, CHANGES[1]), from, None), None);
    }
    let mapped = answer(&request(ID, Change::default()), address("[::ffff:192.0.2.9]:4000"), None).unwrap();
    assert_eq!(parse_response(&mapped.bytes).unwrap().mapped, address("192.0.2.9:4000"));
}

#[test]
fn an_answer_goes_to_another_port_of_who_asks() {
    for (from, other) in BOTH.map(|(f, o)| (address(f), address(o))) {
        let asked = request_to(ID, 4001);
        let answered = answer(&asked, from, Some(other)).unwrap();
        assert_eq!(answered.to, SocketAddr::new(from.ip(), 4001));
        assert!(!answered.from_other_port && answered.bytes.len() <= asked.len() && asked.len() == 76);
        // It still tells where the question came from.
        assert_eq!(parse_response(&answered.bytes).unwrap().mapped, from);
        assert_eq!(answer(&request(ID, CHANGES[1]), from, Some(other)).unwrap().to, from);
    }
}

/// A request with these attributes.
fn with(attributes: Vec<StunAttribute>) -> Vec<u8> {
    let message =
        StunMessageBuilder::new(BINDING, MessageClass::Request).with_transaction_id(TransactionId::from(ID));
    encode(&attributes.into_iter().fold(message, StunMessageBuilder::with_attribute).build()).unwrap()
}

#[test]
fn short_requests_get_short_answers_or_none() {
    let (from, other) = (address("192.0.2.9:4000"), Some(address("0.0.0.0:444")));
    assert_eq!(answer(&with(vec![]), from, other), None);
    // 32 bytes are an IPv4 address' answer, 44 also have room for the other.
    for (padding, expected) in [(7, None), (8, Some(None)), (19, Some(None)), (20, Some(other))] {
        let asked = with(vec![Software::new("x".repeat(padding)).unwrap().into()]);
        let answered = answer(&asked, from, other);
        // Seven bytes are padded to eight.
        let expected = if padding == 7 {
            Some(None)
        } else if padding == 19 {
            Some(other)
        } else {
            expected
        };
        assert_eq!(answered.as_ref().map(|a| parse_response(&a.bytes).unwrap().other), expected, "{padding}");
        assert!(answered.is_none_or(|a| a.bytes.len() <= asked.len()));
    }
    let four = with(vec![Software::new("xxxx").unwrap().into()]);
    assert_eq!(answer(&four, from, other), None);
}

#[test]
fn what_is_not_understood_is_not_answered() {
    let from = address("192.0.2.9:4000");
    let padded = |a: StunAttribute| with(vec![a, Software::new("x".repeat(44)).unwrap().into()]);
    let answered = |bytes: &[u8]| answer(bytes, from, None).is_some();
    assert!(
        answered(&padded(Fingerprint::default().into()))
            && answered(&padded(ChangeRequest::new(None).into()))
    );
    assert!(!answered(&padded(ResponsePort::from(0).into())));
    assert!(!answered(&padded(Padding::new("x").unwrap().into())));
    assert!(!answered(&padded(MappedAddress::from(from).into())));
    // Unknown ones: required, then optional.
    let mut unknown = padded(ChangeRequest::new(None).into());
    unknown[20..22].copy_from_slice(&0x7ffe_u16.to_be_bytes());
    assert!(!answered(&unknown));
    unknown[20..22].copy_from_slice(&0xfffe_u16.to_be_bytes());
    assert!(answered(&unknown));
    // Another method, another class, another cookie, something behind it, too much of it.
    let good = request(ID, Change::default());
    for (at, value) in [(1, 2), (0, 1), (4, 0)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(!answered(&bad), "{at}");
    }
    assert!(!answered(&[good.clone(), vec![0; 4]].concat()));
    // An optional attribute that fills it, up to the last byte that is read, and beyond.
    let reply = answer(&good, from, None).unwrap().bytes;
    for (of, most) in [(good, MAX_REQUEST), (reply, MAX)] {
        for (size, read) in [(most, true), (most + 4, false)] {
            let (more, behind) = ((size - of.len() - 4) as u16, (size - 20) as u16);
            let mut long = [&of[..], &[0xff, 0xfe], &more.to_be_bytes()].concat();
            long[2..4].copy_from_slice(&behind.to_be_bytes());
            long.resize(size, 0);
            assert_eq!(answered(&long) || parse_response(&long).is_some(), read, "{size}");
        }
    }
}

#[test]
fn a_mapped_address_will_do() {
    let from = address("192.0.2.9:4000");
    let message = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(TransactionId::from(ID))
        .with_attribute(MappedAddress::from(from));
    let plain = encode(&message.build()).unwrap();
    assert_eq!(parse_response(&plain).unwrap().mapped, from);
    let both = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(TransactionId::from(ID))
        .with_attribute(MappedAddress::from(from))
        .with_attribute(XorMappedAddress::from(address("192.0.2.8:1")))
        .build();
    assert_eq!(parse_response(&encode(&both).unwrap()).unwrap().mapped, address("192.0.2.8:1"));
    assert_eq!(MappedAddress::get_type().as_u16(), 1);
}

/// Attributes that the library has a reader for, and others: each reads what strangers have written.
fn attribute() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        0x0000u16..0x0030,
        0x8000u16..0x8032,
        any::<u16>(),
        // Those that are read as text, by a grammar and by Unicode's rules.
        prop::sample::select(vec![
            0x0006u16, 0x0014, 0x0015, 0x001e, 0x8002, 0x8003, 0x8022, 0x0009, 0x000a, 0x001d
        ]),
    ];
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "\\PC{0,40}".prop_map(String::into_bytes),
        "[ \t\r\n\"\\\\a\u{c0}\u{300}]{0,200}".prop_map(String::into_bytes),
    ];
    (kind, value, any::<bool>(), -3i32..4).prop_map(|(kind, value, honest, off)| {
        let length = (value.len() as i32 + if honest { 0 } else { off }).max(0) as u16;
        let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
        bytes.extend(&value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

/// A message with a true header, more or less.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(vec![0x0001u16, 0x0101, 0x0111, 0x0011, 0x0003]);
    (kinds, prop::collection::vec(attribute(), 0..12), prop::sample::select(vec![0i32, 0, 0, 0, 1, 4, -4]))
        .prop_map(|(kind, attributes, off)| {
            let attributes = attributes.concat();
            let length = (attributes.len() as i32 + off).max(0) as u16;
            let head = [kind.to_be_bytes(), length.to_be_bytes()].concat();
            [head, vec![0x21, 0x12, 0xa4, 0x42], ID.to_vec(), attributes].concat()
        })
}

fn survive(bytes: &[u8]) -> Result<(), TestCaseError> {
    for (from, other) in BOTH.map(|(f, o)| (address(f), address(o))) {
        for other in [None, Some(other)] {
            if let Some(answer) = answer(bytes, from, other) {
                prop_assert!(answer.bytes.len() <= bytes.len());
                prop_assert_eq!(parse_response(&answer.bytes).unwrap().mapped, from);
            }
        }
    }
    let _any = parse_response(bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        survive(&bytes)?;
    }

    #[test]
    fn any_attributes_are_survived(bytes in message()) {
        survive(&bytes)?;
    }

    #[test]
    fn true_messages_that_were_changed_are_survived(
        which in 0..7usize,
        flips in prop::collection::vec((any::<u16>(), any::<u8>()), 0..6),
        end in 0..80usize,
    ) {
        let mut bytes = match which {
            0 => hex(SAMPLE4),
            1 => hex(SAMPLE6),
            2 => hex(SAMPLE_REQUEST),
            n => request(ID, CHANGES[n - 3]),
        };
        for (at, value) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - end % 9 % bytes.len());
        survive(&bytes)?;
    }
}
