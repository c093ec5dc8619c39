//! An invite: a URL, short enough for a QR code, that lets one node join (or several).
//!
//! The network id in it commits to the root key. The secret in it is shown to nobody: what the relay, the mailbox
//! and the handshake need comes from it under separate labels. Role, names and expiry are hints for people; what
//! counts is what the inviter keeps.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use shadowmesh_crypto::{Hash, Label, Secret, Zeroizing, kdf};

use crate::{
    HostPort, Name, NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
    fact::Roles,
};

const VERSION: u8 = 1;
const SCHEME: &str = "shadowmesh://join/";
const CHECK_LEN: usize = 4;
/// The most relays named in an invite.
pub const MAX_RELAYS: usize = 2;
/// The longest invite's URL, in bytes.
pub const MAX_URL_LEN: usize = 1400;

/// Where the inviter can be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// The relay.
    pub relay: NodeId,
    /// Where it listens.
    pub address: HostPort,
}

/// An invite.
#[derive(PartialEq, Eq)]
pub struct Invite {
    /// The network; a hash that commits to its root key.
    pub network: NetworkId,
    /// What the network is called, as a hint.
    pub network_name: Name,
    /// The name the inviter thought of for the joiner, as a hint.
    pub name: Option<Name>,
    /// The roles the joiner will get, as a hint.
    pub roles: Roles,
    /// When it ends (unix seconds), as a hint.
    pub expires: u64,
    /// The oldest version of the roster to believe.
    pub least_version: u64,
    /// The relays at which the inviter is met, one or two.
    pub relays: Vec<Meeting>,
    /// The secret.
    pub secret: Secret<32>,
}

/// The keys and the address that come from an invite's secret.
pub trait InviteSecret {
    /// Where the inviter is met: what the relay sees.
    fn locator(&self) -> Hash;
    /// Mixed into k1 of the handshake with the inviter.
    fn mix_key(&self) -> Secret<32>;
    /// The MAC key for HELLO.
    fn hello_mac_key(&self) -> Secret<32>;
    /// The key under CHALLENGE's seal.
    fn challenge_seal_key(&self) -> Secret<32>;
    /// The key under LEAF's seal.
    fn leaf_seal_key(&self) -> Secret<32>;
}

impl InviteSecret for Secret<32> {
    fn locator(&self) -> Hash {
        *from_secret(Label::InviteLocator, self).expose()
    }

    fn mix_key(&self) -> Secret<32> {
        from_secret(Label::InviteSeal, self)
    }

    fn hello_mac_key(&self) -> Secret<32> {
        from_secret(Label::InviteHelloMac, self)
    }

    fn challenge_seal_key(&self) -> Secret<32> {
        from_secret(Label::InviteChallengeSeal, self)
    }

    fn leaf_seal_key(&self) -> Secret<32> {
        from_secret(Label::InviteLeafSeal, self)
    }
}

fn from_secret(label: Label, secret: &Secret<32>) -> Secret<32> {
    kdf::derive(label, &[], &[secret.expose()], &[])
}

impl Invite {
    /// Where the inviter is met: what the relay sees.
    pub fn locator(&self) -> Hash {
        self.secret.locator()
    }

    /// Mixed into k1 of the handshake with the inviter.
    pub fn mix_key(&self) -> Secret<32> {
        self.secret.mix_key()
    }

    /// The invite as a URL. It *is* the secret: show it to the one it is for.
    pub fn to_url(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_URL_LEN));
        out.put_u8(VERSION);
        out.put(&self.network.0);
        out.put(self.secret.expose());
        out.put_u64(self.least_version);
        out.put_u64(self.expires);
        out.put_u16(self.roles.0);
        out.put_list(&self.relays, |out, meeting| {
            out.put(&meeting.relay.0);
            meeting.address.write(out);
        });
        self.network_name.write(&mut out);
        match &self.name {
            Some(name) => name.write(&mut out),
            None => out.put_text(""),
        }
        let check = checksum(&out);
        out.put(&check);
        let mut url = Zeroizing::new(String::with_capacity(MAX_URL_LEN));
        url.push_str(SCHEME);
        BASE64URL_NOPAD.encode_append(&out, &mut url);
        url
    }
}

/// Shows what is no secret.
impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("network", &self.network)
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("expires", &self.expires)
            .field("relays", &self.relays)
            .finish_non_exhaustive()
    }
}

const INCOMPLETE: ParseError =
    ParseError::Invalid("the invite is incomplete or mistyped: copy the whole of it again");

impl FromStr for Invite {
    type Err = ParseError;

    /// Takes the URL with white space around it or inside it, as mail programs break long lines.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > 2 * MAX_URL_LEN {
            return Err(ParseError::TooLong("the invite"));
        }
        let text: Zeroizing<String> = Zeroizing::new(text.split_whitespace().collect());
        let code = text
            .strip_prefix(SCHEME)
            .ok_or(ParseError::Invalid("an invite begins with shadowmesh://join/"))?;
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(code.as_bytes()).map_err(|_| INCOMPLETE)?);
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(ParseError::Invalid(
                "the invite was made by a newer version of ShadowMesh: update this one",
            ));
        }
        let (body, check) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(INCOMPLETE)?;
        if checksum(body) != *check {
            return Err(INCOMPLETE);
        }
        let mut reader = Reader::new(body);
        let _version = reader.u8()?;
        let network = NetworkId(reader.array()?);
        let secret = Secret::new(reader.array()?);
        let (least_version, expires) = (reader.u64()?, reader.u64()?);
        let roles = Roles(reader.u16()?);
        let relays = reader.list(MAX_RELAYS, "the invite's list of relays", |r| {
            Ok(Meeting { relay: NodeId(r.array()?), address: HostPort::read(r)? })
        })?;
        if relays.is_empty() {
            return Err(ParseError::Invalid("the invite names no relay"));
        }
        let network_name = Name::read(&mut reader)?;
        let name = match reader.text()? {
            "" => None,
            text => Some(text.parse()?),
        };
        reader.finish()?;
        Ok(Invite { network, network_name, name, roles, expires, least_version, relays, secret })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let [a, b, c, d, ..] = kdf::hash(Label::InviteCheck, &[bytes]);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invite() -> Invite {
        Invite {
            network: NetworkId([1; 32]),
            network_name: "home".parse().unwrap(),
            name: Some("laptop".parse().unwrap()),
            roles: Roles::MEMBER,
            expires: 1_790_000_000,
            least_version: 17,
            relays: vec![Meeting { relay: NodeId([2; 32]), address: "relay.example:443".parse().unwrap() }],
            secret: Secret::new([0xAB; 32]),
        }
    }

    #[test]
    fn url_round_trips_even_broken_over_lines() {
        let url = invite().to_url();
        assert!(url.len() < 230, "{}", url.len());
        assert_eq!(url.parse(), Ok(invite()));
        let broken = format!(" {}\r\n {}\n", &url[..80], &url[80..]);
        assert_eq!(broken.parse(), Ok(invite()));
        let two = Invite { name: None, relays: vec![invite().relays[0].clone(); 2], ..invite() };
        assert_eq!(two.to_url().parse(), Ok(two));
    }

    #[test]
    fn mistakes_have_sentences() {
        let url = invite().to_url();
        let incomplete = "the invite is incomplete or mistyped: copy the whole of it again";
        for len in SCHEME.len()..url.len() {
            assert_eq!(url[..len].parse::<Invite>().unwrap_err().to_string(), incomplete);
        }
        let say = |text: &str| text.parse::<Invite>().unwrap_err().to_string();
        assert_eq!(say("smr://x"), "an invite begins with shadowmesh://join/");
        assert!(say(&url.replacen("join/A", "join/B", 1)).contains("newer version"));
        assert_eq!(say(&url.replacen("q6ur", "q6us", 1)), incomplete);
    }

    #[test]
    fn no_secret_is_printed_and_no_two_keys_are_alike() {
        let invite = invite();
        let printed = format!("{invite:?}");
        assert!(!printed.contains("171") && !printed.to_lowercase().contains("abab"), "{printed}");
        let keys = [
            Secret::new(invite.locator()),
            invite.mix_key(),
            invite.secret.hello_mac_key(),
            invite.secret.challenge_seal_key(),
            invite.secret.leaf_seal_key(),
            invite.secret.duplicate(),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_invite_or_an_error(text in ".*", bytes: Vec<u8>) {
            let _ = text.parse::<Invite>();
            // Behind a right checksum too.
            let mut body = vec![VERSION];
            body.extend_from_slice(&[7; 82]);
            body.extend_from_slice(&bytes);
            let check = checksum(&body);
            body.extend_from_slice(&check);
            let _ = format!("{SCHEME}{}", BASE64URL_NOPAD.encode(&body)).parse::<Invite>();
        }
    }
}
