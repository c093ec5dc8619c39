//! Why a packet or frame was dropped: one word for the error, the trace field and the metric's label.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why something was dropped. Each reason is a counter; none is ever silent.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// The reason as a metric label.
            pub fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// Bytes that are no packet of ours.
    Malformed = "malformed",
    /// Shorter than its layout.
    Truncated = "truncated",
    /// Longer than is allowed.
    TooLong = "too_long",
    /// A data packet for an index that nobody has.
    UnknownIndex = "unknown_index",
    /// The AEAD tag is wrong.
    BadTag = "bad_tag",
    /// Counter already seen.
    Replayed = "replayed",
    /// Counter older than the window.
    TooOld = "too_old",
    /// HELLO's or a relay header's MAC is wrong.
    BadMac = "bad_mac",
    /// The cookie is wrong or has expired.
    BadCookie = "bad_cookie",
    /// No version in common.
    BadVersion = "bad_version",
    /// No cipher suite in common.
    BadSuite = "bad_suite",
    /// A handshake message for no handshake that is under way.
    UnknownHandshake = "unknown_handshake",
    /// A handshake message that does not hold (wrong leaf, wrong peer, wrong transcript).
    BadHandshake = "bad_handshake",
    /// The peer's certificate is revoked, expired, of another network or unknown.
    NotMember = "not_member",
    /// A bound on what strangers can make us hold was reached.
    OverLimit = "over_limit",
    /// Too many packets from one source.
    RateLimited = "rate_limited",
    /// The frame's source MAC is not the sender's to use.
    SourceMac = "source_mac",
    /// The frame's source mesh address is not the sender's to use.
    SourceAddress = "source_address",
    /// The frame's VLAN is not one that the sender may bridge.
    SourceVlan = "source_vlan",
    /// The frame is no Ethernet frame, or larger than the device's MTU.
    BadFrame = "bad_frame",
    /// Nobody has the destination MAC.
    UnknownDestination = "unknown_destination",
    /// No session with the destination, and none could be made yet.
    NoSession = "no_session",
    /// The budget for flooded frames is used up.
    FloodBudget = "flood_budget",
    /// A frame's fragments did not all arrive in time.
    Reassembly = "reassembly",
    /// A queue towards the control half was full.
    QueueFull = "queue_full",
    /// The operating system took no more.
    SocketBusy = "socket_busy",
    /// A path's validation that was not asked for, or is answered from elsewhere.
    BadPath = "bad_path",
    /// A key is past its lifetime.
    KeyExpired = "key_expired",
    /// Relay: the destination handle is nobody's here.
    UnknownHandle = "unknown_handle",
    /// Relay: the two ends are not of one network, or the pair is not allowed.
    NotAllowed = "not_allowed",
    /// Relay: the slot is nobody's.
    UnknownSlot = "unknown_slot",
    /// Link-local control protocols (IEEE 802.1D BPDUs and the like) do not cross.
    LinkLocal = "link_local",
}

impl From<crate::WireError> for DropReason {
    fn from(e: crate::WireError) -> Self {
        match e {
            crate::WireError::Truncated => DropReason::Truncated,
            crate::WireError::TooLong => DropReason::TooLong,
            crate::WireError::Malformed => DropReason::Malformed,
        }
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}
