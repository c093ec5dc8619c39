//! How a relay is named: `smr://host:port/<base64url(NodeId ‖ token)>`. The token is needed once, to register a
//! network there.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use shadowmesh_crypto::Secret;

use crate::{HostPort, NodeId, ParseError, codec::Reader};

/// A relay: where it listens, who it is, and perhaps a token to register with.
///
/// [`fmt::Display`] shows the public part; only [`RelayUrl::with_token`] shows the token.
#[derive(Debug, PartialEq, Eq)]
pub struct RelayUrl {
    /// Where it listens.
    pub address: HostPort,
    /// Its NodeId.
    pub relay: NodeId,
    /// The registration token, 16 bytes.
    pub token: Option<Secret<16>>,
}

const SCHEME: &str = "smr://";

impl RelayUrl {
    /// The whole URL, token included.
    pub fn with_token(&self) -> String {
        let mut key = self.relay.0.to_vec();
        if let Some(token) = &self.token {
            key.extend_from_slice(token.expose());
        }
        format!("{SCHEME}{}/{}", self.address, BASE64URL_NOPAD.encode(&key))
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.address, BASE64URL_NOPAD.encode(&self.relay.0))
    }
}

impl FromStr for RelayUrl {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        if text.len() > 512 {
            return Err(ParseError::TooLong("the relay's URL"));
        }
        let rest =
            text.strip_prefix(SCHEME).ok_or(ParseError::Invalid("a relay's URL begins with smr://"))?;
        let (address, key) =
            rest.split_once('/').ok_or(ParseError::Invalid("the relay's URL has no key behind its port"))?;
        let address = address.parse()?;
        let key = BASE64URL_NOPAD
            .decode(key.as_bytes())
            .map_err(|_| ParseError::Invalid("the key in the relay's URL is incomplete or mistyped"))?;
        let mut reader = Reader::new(&key);
        let relay = NodeId(reader.array()?);
        let token = if reader.rest().is_empty() { None } else { Some(Secret::new(reader.array()?)) };
        reader.finish()?;
        Ok(RelayUrl { address, relay, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_token_is_shown_on_purpose_only() {
        let url = RelayUrl {
            address: "relay.example:4242".parse().unwrap(),
            relay: NodeId([1; 32]),
            token: Some(Secret::new([0xAA; 16])),
        };
        let public: RelayUrl = url.to_string().parse().unwrap();
        assert_eq!((public.relay, &public.token), (url.relay, &None));
        assert_eq!(url.with_token().parse(), Ok(url));
    }

    #[test]
    fn mistakes_have_sentences() {
        let say = |text: &str| text.parse::<RelayUrl>().unwrap_err().to_string();
        assert_eq!(say("https://x"), "a relay's URL begins with smr://");
        assert_eq!(say("smr://relay:1"), "the relay's URL has no key behind its port");
        assert_eq!(say("smr://relay/AAAA"), "the port is not a number from 1 to 65535");
        assert_eq!(say("smr://relay:1/AAAA"), "it ends too early");
        assert_eq!(say("smr://relay:1/A*AA"), "the key in the relay's URL is incomplete or mistyped");
    }

    proptest! {
        #[test]
        fn urls_round_trip(relay: [u8; 32], token: Option<[u8; 16]>, port in 1u16..) {
            let address = HostPort::new("2001:db8::1", port).unwrap();
            let url = RelayUrl { address, relay: NodeId(relay), token: token.map(Secret::new) };
            prop_assert_eq!(url.with_token().parse(), Ok(url));
        }

        #[test]
        fn any_text_is_taken_or_refused(text in ".*", key in "[A-Za-z0-9_-]*") {
            let _ = text.parse::<RelayUrl>();
            let _ = format!("smr://h:1/{key}").parse::<RelayUrl>();
        }
    }
}
