//! What a member may speak for besides itself: hosts on a LAN that it bridges into the network. An admin grants it in the
//! certificate; who receives a frame holds the sender to it.

use std::fmt;
use std::net::IpAddr;

use crate::{
    ParseError,
    address::Prefix,
    codec::{Put, Reader},
};

const MAX_MACS: usize = 32;
const MAX_VLANS: usize = 32;
const MAX_PREFIXES: usize = 16;

/// Stands for any source MAC in [`Bridge::macs`]: no host has it (a frame from it is refused).
pub const ANY_MAC: [u8; 6] = [0; 6];

/// What a member may speak for besides itself. The network's own addresses are not among it: those are their members'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Source MACs, at most 32; [`ANY_MAC`] among them: of any host that is no member.
    pub macs: Vec<[u8; 6]>,
    /// VLAN ids, 1 to 4094, at most 32, that its hosts may be in. None: only untagged frames.
    pub vlans: Vec<u16>,
    /// IP prefixes that its hosts have addresses of, at most 16. None: any.
    pub prefixes: Vec<Prefix>,
}

impl Bridge {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let macs = reader.list(MAX_MACS, "a list of bridged MACs", Reader::array)?;
        let vlans = reader.list(MAX_VLANS, "a list of bridged VLANs", |r| match r.u16()? {
            id @ 1..=4094 => Ok(id),
            _ => Err(ParseError::Invalid("a VLAN id is not 1 to 4094")),
        })?;
        let prefixes = reader.list(MAX_PREFIXES, "a list of bridged prefixes", Prefix::read)?;
        Ok(Bridge { macs, vlans, prefixes })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_list(&self.macs, |out, mac| out.put(mac));
        out.put_list(&self.vlans, |out, id| out.put_u16(*id));
        out.put_list(&self.prefixes, |out, prefix| prefix.write(out));
    }

    /// Whether it may speak for nothing.
    pub fn is_empty(&self) -> bool {
        self.macs.is_empty()
    }

    /// Whether its hosts may have any MAC.
    pub fn is_any(&self) -> bool {
        self.macs.contains(&ANY_MAC)
    }

    /// Whether a host of its may have this MAC.
    pub fn has_mac(&self, mac: &[u8; 6]) -> bool {
        *mac != ANY_MAC && (self.macs.contains(mac) || self.is_any())
    }

    /// Whether a host of its may send in this VLAN (0: none).
    pub fn has_vlan(&self, id: u16) -> bool {
        id == 0 || self.vlans.contains(&id)
    }

    /// Whether a host of its may have this address. What is not yet or only on its link an address is anyone's:
    /// unspecified, and link-local (RFC 3927, RFC 4291 section 2.5.6).
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let local = match ip {
            IpAddr::V4(a) => a.is_unspecified() || a.is_link_local(),
            IpAddr::V6(a) => a.is_unspecified() || a.is_unicast_link_local(),
        };
        local || self.prefixes.is_empty() || self.prefixes.iter().any(|p| p.contains(ip))
    }

    /// Reads what people write: each word is `any` (host), a MAC, `vlan:7`, or a prefix such as `192.168.7.0/24`.
    ///
    /// # Errors
    ///
    /// A sentence about the word that is none of these, or about what is missing.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Bridge, String> {
        let mut bridge = Bridge::default();
        for word in words {
            if word == "any" {
                bridge.macs.push(ANY_MAC);
            } else if let Some(id) = word.strip_prefix("vlan:") {
                match id.parse() {
                    Ok(id @ 1..=4094) => bridge.vlans.push(id),
                    _ => return Err(format!("`{word}`: a VLAN id is 1 to 4094")),
                }
            } else if let Some((address, len)) = word.split_once('/') {
                let prefix = address.parse().ok().zip(len.parse().ok());
                let prefix = prefix.and_then(|(address, len)| Prefix::new(address, len).ok());
                bridge.prefixes.push(prefix.ok_or_else(|| {
                    format!("`{word}` is not an IP prefix such as 192.168.7.0/24, its host bits zero")
                })?);
            } else {
                let mac = mac(word).ok_or_else(|| {
                    format!(
                        "`{word}` is not `any`, a host's MAC (02:00:5e:10:00:01), `vlan:7` or an IP prefix"
                    )
                })?;
                bridge.macs.push(mac);
            }
        }
        if bridge.macs.is_empty() && !(bridge.vlans.is_empty() && bridge.prefixes.is_empty()) {
            return Err(
                "VLANs and prefixes narrow down what hosts may be bridged: say which, by MAC, or `any`"
                    .into(),
            );
        }
        for (what, is, most) in [
            ("MACs", bridge.macs.len(), MAX_MACS),
            ("VLANs", bridge.vlans.len(), MAX_VLANS),
            ("prefixes", bridge.prefixes.len(), MAX_PREFIXES),
        ] {
            if is > most {
                return Err(format!("{is} {what}, and a certificate has room for {most}"));
            }
        }
        Ok(bridge)
    }
}

/// A unicast MAC that a host can have.
fn mac(word: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = word.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != ANY_MAC).then_some(mac)
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let macs = self.macs.iter().map(|m| match m {
            m if *m == ANY_MAC => "any".to_owned(),
            [a, b, c, d, e, g] => format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
        });
        let vlans = self.vlans.iter().map(|id| format!("vlan:{id}"));
        let words: Vec<_> = macs.chain(vlans).chain(self.prefixes.iter().map(ToString::to_string)).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        let text = "any 02:00:5e:10:00:01 vlan:7 192.168.7.0/24 fd99::/64";
        let bridge = Bridge::from_words(text.split(' ')).unwrap();
        assert_eq!(bridge.to_string(), text);
        assert!(Bridge::from_words([]).unwrap().is_empty());
        for bad in [
            "anything",
            "vlan:0",
            "vlan:4095",
            "192.168.7.1/24",
            "01:00:5e:10:00:01",
            "00:00:00:00:00:00",
            "02:00",
        ] {
            let said = Bridge::from_words(["any", bad]).unwrap_err();
            assert!(said.contains(bad), "{said}");
        }
        assert!(Bridge::from_words(["vlan:7"]).unwrap_err().contains("MAC"));
        let many: Vec<String> = (0..33).map(|i| format!("02:00:00:00:00:{i:02x}")).collect();
        assert!(Bridge::from_words(many.iter().map(String::as_str)).unwrap_err().contains("33 MACs"));
    }

    #[test]
    fn what_hosts_may_be() {
        let of = |text: &str| Bridge::from_words(text.split(' ')).unwrap();
        let (any, one) = (of("any"), of("02:00:5e:10:00:01 vlan:7 192.168.7.0/24"));
        let (host, other) = ([2, 0, 0x5e, 0x10, 0, 1], [2, 0, 0, 0, 0, 9]);
        assert!(any.has_mac(&host) && any.has_mac(&other) && !any.has_mac(&ANY_MAC));
        assert!(one.has_mac(&host) && !one.has_mac(&other));
        assert!(any.has_vlan(0) && !any.has_vlan(7) && one.has_vlan(7) && !one.has_vlan(8));
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(
            any.has_address(ip("8.8.8.8"))
                && one.has_address(ip("192.168.7.9"))
                && !one.has_address(ip("8.8.8.8"))
        );
        assert!(
            one.has_address(ip("0.0.0.0"))
                && one.has_address(ip("fe80::1"))
                && !one.has_address(ip("2001:db8::1"))
        );
    }
}
