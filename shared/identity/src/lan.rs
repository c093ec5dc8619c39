//! The name by which a node announces itself on its LAN. Members can tell whose it is, for one day; to others it is random.
//! [P-LAN]

use crate::{DAY, NetworkId, NodeId};
use data_encoding::BASE32_NOPAD;
use shadowmesh_crypto::{Label, kdf};

/// Letters of a name: 16 bytes in base32.
pub const LETTERS: usize = 26;

/// The name on the day (UTC) of this time, unix seconds.
pub fn name(network: &NetworkId, node: &NodeId, unix: u64) -> String {
    let hash = kdf::hash(Label::LanName, &[&network.0, &node.0, &(unix / DAY).to_be_bytes()]);
    BASE32_NOPAD.encode(&hash[..16]).to_ascii_lowercase()
}

/// The names by which it may be heard: clocks differ, and an announcement lives for a while.
pub fn names(network: &NetworkId, node: &NodeId, unix: u64) -> [String; 3] {
    [unix.saturating_sub(DAY), unix, unix.saturating_add(DAY)].map(|at| name(network, node, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_the_network_can_tell_and_only_for_a_day() {
        let (network, node) = (NetworkId([1; 32]), NodeId([2; 32]));
        let noon = 20_000 * DAY + DAY / 2;
        let here = name(&network, &node, noon);
        assert_eq!(here.len(), LETTERS);
        assert_eq!(here, name(&network, &node, noon + DAY / 3));
        for other in [
            name(&NetworkId([3; 32]), &node, noon),
            name(&network, &NodeId([3; 32]), noon),
            name(&network, &node, noon + DAY),
        ] {
            assert_ne!(here, other);
        }
        // Somebody whose clock is a day behind, or ahead, is known.
        assert!([noon - DAY, noon, noon + DAY].iter().all(|at| names(&network, &node, *at).contains(&here)));
        assert!(!names(&network, &node, noon + 2 * DAY).contains(&here));
    }
}
