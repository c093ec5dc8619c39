//! Names of members, networks and tags, and addresses as people write them: `host:port`.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use crate::{
    ParseError,
    codec::{Put, Reader},
};

/// A name: 1 to 63 of `a`-`z`, `0`-`9` and `-`, with no hyphen at either end (a host name's label, RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

const NAME_RULE: ParseError =
    ParseError::Invalid("a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -");

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest name to what a machine calls itself: lower case, other characters become hyphens. `None` when
    /// nothing is left.
    pub fn from_hint(hint: &str) -> Option<Self> {
        let mut text = String::new();
        for c in hint.chars().take(63) {
            match c.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9') => text.push(c),
                _ if !text.is_empty() && !text.ends_with('-') => text.push('-'),
                _ => {}
            }
        }
        text.trim_end_matches('-').parse().ok()
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        reader.text()?.parse()
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_text(&self.0);
    }
}

impl FromStr for Name {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fits = matches!(text.len(), 1..=63)
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits { Ok(Name(text.to_owned())) } else { Err(NAME_RULE) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a relay listens: a host name or IP address of at most 255 bytes, and a port that is not 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

const HOST_RULE: ParseError = ParseError::Invalid("the host is neither a host name nor an IP address");
const PORT_RULE: ParseError = ParseError::Invalid("the port is not a number from 1 to 65535");

impl HostPort {
    /// Checks host and port. An IPv6 address stands without brackets here.
    ///
    /// # Errors
    ///
    /// [`ParseError::Invalid`] or [`ParseError::TooLong`], saying which of the two.
    pub fn new(host: &str, port: u16) -> Result<Self, ParseError> {
        if host.len() > 255 {
            return Err(ParseError::TooLong("the host"));
        }
        if port == 0 {
            return Err(PORT_RULE);
        }
        let name = |host: &str| {
            !host.is_empty()
                && !host.starts_with(['.', '-'])
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        if name(host) || host.parse::<Ipv6Addr>().is_ok() {
            Ok(HostPort { host: host.to_owned(), port })
        } else {
            Err(HOST_RULE)
        }
    }

    /// The host name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let host = reader.text()?;
        HostPort::new(host, reader.u16()?)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_text(&self.host);
        out.put_u16(self.port);
    }
}

impl FromStr for HostPort {
    type Err = ParseError;

    /// `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (host, port) = text.rsplit_once(':').ok_or(PORT_RULE)?;
        let port = match port.bytes().all(|b| b.is_ascii_digit()) {
            true => port.parse().map_err(|_| PORT_RULE)?,
            false => return Err(PORT_RULE),
        };
        match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => HostPort::new(v6, port),
            None if !host.contains(':') => HostPort::new(host, port),
            _ => Err(HOST_RULE),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "ä", "a b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<Name>(), Err(NAME_RULE), "{bad}");
        }
        assert_eq!(Name::from_hint("Anna's MacBook.local").unwrap().as_str(), "anna-s-macbook-local");
        assert_eq!(Name::from_hint("  ").map(|n| n.to_string()), None);
    }

    #[test]
    fn hosts_and_ports() {
        for good in ["relay.example:443", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:4242"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in ["", "relay", "relay:", ":1", "relay:0", "relay:65536", "relay:+1", "2001:db8::1:443"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        assert!("a b:1".parse::<HostPort>().is_err() && "[relay]:1".parse::<HostPort>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".*") {
            let _ = text.parse::<HostPort>();
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.as_str(), text.as_str());
            }
            if let Some(name) = Name::from_hint(&text) {
                prop_assert_eq!(name.as_str().parse::<Name>(), Ok(name.clone()));
            }
        }
    }
}
