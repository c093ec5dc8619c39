//! A relay that the network may use, and the secret that lets its members in there.

use shadowmesh_crypto::Secret;

use crate::{
    HostPort, ParseError,
    codec::{Put, Reader},
};

/// Access to a relay; the subject is the relay's NodeId.
#[derive(Debug, PartialEq, Eq)]
pub struct Access {
    /// Where the relay listens.
    pub address: HostPort,
    /// The network's tag at this relay: a hash of the owner secret.
    pub tag: [u8; 32],
    /// The access secret, common to all members.
    pub secret: Secret<32>,
    /// How many tombstones counted when it was drawn: whoever holds fewer may not tell it, since one of those that it
    /// does not know may end whom it would tell.
    pub ended: u32,
}

impl Access {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        Ok(Access {
            address: HostPort::read(reader)?,
            tag: reader.array()?,
            secret: Secret::new(reader.array()?),
            ended: reader.u32()?,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.address.write(out);
        out.put(&self.tag);
        out.put(self.secret.expose());
        out.put_u32(self.ended);
    }
}
