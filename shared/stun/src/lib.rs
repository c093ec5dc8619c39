//! STUN (RFC 8489) with what of NAT behaviour discovery (RFC 5780) is used: Binding requests, and their answers. No I/O.
//!
//! The encoding is `stun-rs`'. All that comes here is from strangers: it is measured before it is read, and what cannot be
//! read is nothing. A relay never answers with more bytes than it was asked with (P-AMPLIFY): a request of ours is padded
//! for that, and has room for two IPv6 addresses.
#![warn(missing_docs)]

use std::net::SocketAddr;
use stun_rs::attributes::StunAttribute;
use stun_rs::attributes::discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, ResponsePort};
use stun_rs::attributes::stun::{Fingerprint, Software, XorMappedAddress};
use stun_rs::methods::BINDING;
use stun_rs::{
    MESSAGE_HEADER_SIZE, MessageClass, MessageDecoder, MessageEncoder, StunMessage, StunMessageBuilder,
    TransactionId, get_input_text,
};

/// The longest message that is read: what IPv4 carries everywhere (RFC 8489 section 6.1: 576 bytes), less its headers.
pub const MAX: usize = 548;

/// The longest request that is answered: there are texts that take 0.1 ms to read in 548 bytes, and ours have 76.
pub const MAX_REQUEST: usize = 128;

/// What makes a request as long as its longest answer: 20 bytes, and twice 24 for an IPv6 address. SOFTWARE (RFC 8489
/// section 14.14) is what every server lets pass; PADDING (RFC 5780 section 7.6) has to be understood. It names nobody.
const PADDING: &str = "............................................";

/// From where an answer is wanted (RFC 5780 section 7.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// From the server's other address.
    pub ip: bool,
    /// From its other port.
    pub port: bool,
}

/// What a server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Of the request.
    pub id: [u8; 12],
    /// Where the server sees the one who asked.
    pub mapped: SocketAddr,
    /// The server's other address and port. Who has no second address says an unspecified one: the port counts.
    pub other: Option<SocketAddr>,
}

/// What a relay answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// Where it is to go: to who asked, if by another port.
    pub to: SocketAddr,
    /// It is to go out by the port that was not asked.
    pub from_other_port: bool,
}

/// A Binding request. `id` is random, so that nobody who has not seen it can answer.
pub fn request(id: [u8; 12], change: Change) -> Vec<u8> {
    let mut message = padded(id);
    let flags = match (change.ip, change.port) {
        (false, false) => None,
        (true, false) => Some(ChangeRequestFlags::ChangeIp.into()),
        (false, true) => Some(ChangeRequestFlags::ChangePort.into()),
        (true, true) => Some(ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort),
    };
    if flags.is_some() {
        message = message.with_attribute(ChangeRequest::new(flags));
    }
    // Nothing of this can fail: the parts are constants, and short.
    encode(&message.build()).unwrap_or_default()
}

/// One whose answer is to go to another port of who asks (RFC 5780 section 7.5).
pub fn request_to(id: [u8; 12], port: u16) -> Vec<u8> {
    encode(&padded(id).with_attribute(ResponsePort::from(port)).build()).unwrap_or_default()
}

fn padded(id: [u8; 12]) -> StunMessageBuilder {
    let message =
        StunMessageBuilder::new(BINDING, MessageClass::Request).with_transaction_id(TransactionId::from(id));
    match Software::new(PADDING) {
        Ok(padding) => message.with_attribute(padding),
        Err(_) => message,
    }
}

/// The answer to a Binding request; nothing for any other bytes, errors among them.
pub fn parse_response(bytes: &[u8]) -> Option<Response> {
    let message = decode(bytes, MessageClass::SuccessResponse)?;
    let all = message.attributes();
    if all.iter().any(|a| a.is_unknown() && a.attribute_type().is_comprehension_required()) {
        return None;
    }
    let xor = all.iter().find_map(|a| Some(*a.as_xor_mapped_address().ok()?.socket_address()));
    let plain = || all.iter().find_map(|a| Some(*a.as_mapped_address().ok()?.socket_address()));
    let other = all.iter().find_map(|a| Some(*a.as_other_address().ok()?.socket_address()));
    Some(Response {
        id: *message.transaction_id().as_bytes(),
        mapped: canonical(xor.or_else(plain)?),
        other: other.map(canonical),
    })
}

/// A relay's answer to what `from` has sent; `other` is what it says of its second port, if it has one.
///
/// An answer is never larger than what asked for it: OTHER-ADDRESS is left out where it would be, and who asks in 20 bytes,
/// as RFC 8489 allows, is not answered at all. A relay is no STUN server for all the world, and must be no amplifier.
/// Errors are not told either: what is not understood gets nothing. RESPONSE-PORT sends nothing to anybody that a forged
/// source port would not.
pub fn answer(request: &[u8], from: SocketAddr, other: Option<SocketAddr>) -> Option<Answer> {
    if request.len() > MAX_REQUEST {
        return None;
    }
    let message = decode(request, MessageClass::Request)?;
    let (mut from_other_port, mut to) = (false, from);
    for attribute in message.attributes() {
        match attribute {
            StunAttribute::ChangeRequest(change) => {
                // A relay has one address, as far as it knows.
                if change.flags().contains(ChangeRequestFlags::ChangeIp) {
                    return None;
                }
                from_other_port = change.flags().contains(ChangeRequestFlags::ChangePort);
            }
            StunAttribute::ResponsePort(port) if port.as_u16() > 0 => to.set_port(port.as_u16()),
            a if a.attribute_type().is_comprehension_required() => return None,
            _ => {}
        }
    }
    if from_other_port && other.is_none() {
        return None;
    }
    let with = |other: Option<SocketAddr>| {
        let mut answer = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
            .with_transaction_id(*message.transaction_id())
            .with_attribute(XorMappedAddress::from(canonical(from)));
        if let Some(other) = other {
            answer = answer.with_attribute(OtherAddress::from(other));
        }
        encode(&answer.build()).filter(|bytes| bytes.len() <= request.len())
    };
    let bytes = with(other).or_else(|| with(None))?;
    Some(Answer { bytes, to, from_other_port })
}

/// A Binding message of this class that is all of the bytes, with a true FINGERPRINT if with any.
fn decode(bytes: &[u8], class: MessageClass) -> Option<StunMessage> {
    if !(MESSAGE_HEADER_SIZE..=MAX).contains(&bytes.len()) {
        return None;
    }
    let (message, length) = MessageDecoder::default().decode(bytes).ok()?;
    if length != bytes.len() || message.method() != BINDING || message.class() != class {
        return None;
    }
    if let Some(fingerprint) = message.get::<Fingerprint>().and_then(|a| a.as_fingerprint().ok())
        && !fingerprint.validate(&get_input_text::<Fingerprint>(bytes)?)
    {
        return None;
    }
    Some(message)
}

fn encode(message: &StunMessage) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX];
    let length = MessageEncoder::default().encode(&mut bytes, message).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// An IPv4 address in IPv6's form is the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
