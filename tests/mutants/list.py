"""Named mutants of the core: (name, what it breaks, [(file, find, replace)]). The simulator must catch each."""

P = "shared/proto/src/"
A = "shared/crypto/src/aead.rs"

MUTANTS = [
    ("window-unchecked", "a replayed packet opens again", [
        (P + "lane.rs", "w.check(header.counter)?;", "let _ = w;"),
    ]),
    ("window-before-tag", "a forged packet moves the window", [
        (P + "lane.rs", "        let len = datagram.len();\n        let (head, sealed)",
         "        self.window.get_or_insert_default().accept(header.counter);\n        let len = datagram.len();\n        let (head, sealed)"),
    ]),
    ("window-none", "only counters above the highest are taken", [
        (P + "window.rs", "if self.next - counter > Self::SPAN {", "if true {"),
    ]),
    ("counter-reused", "a sending lane repeats a counter", [
        (P + "lane.rs", "        self.counter += 1;", "        self.counter += u64::from(self.counter % 50 != 49);"),
    ]),
    ("tombstone-ignored", "a revoked member keeps its session", [
        (P + "node/sync.rs", "if self.roster.is_valid(node, unix).is_err() {", "if false {"),
        (P + "node/mod.rs", "                (Err(e), Some(p)) if !self.peers[p as usize].sessions.is_empty() => {",
         "                (Err(e), Some(p)) if false && !self.peers[p as usize].sessions.is_empty() => {"),
        (P + "node/mod.rs", "*node != self.id && self.roster.is_valid(node, self.admin_time).is_ok()",
         "*node != self.id"),
    ]),
    ("revocation-not-pushed", "a revocation is kept to oneself", [
        (P + "node/sync.rs", "if Some(p) != from && self.peers[p as usize].sending.is_some() {",
         "if false && Some(p) != from {"),
        (P + "node/sync.rs", "if digest != self.roster.digest() {", "if false && digest != self.roster.digest() {"),
    ]),
    ("simopen-own-wins", "each side sends on the session that it began", [
        (P + "node/session.rs", "Ordering::Equal => newer.begun_by <= self.begun_by,",
         "Ordering::Equal => newer.role == Role::Initiator,"),
    ]),
    ("rekey-no-grace", "the old session ends at once", [
        (P + "node/sessions.rs", "loser.retire_at = Some(now + GRACE);", "loser.retire_at = Some(now);"),
    ]),
    ("stale-lane-kept", "the data half never hears of the new session", [
        (P + "node/sessions.rs", "        self.dirty = true;\n        if way.is_some() {", "        self.dirty = first;\n        if way.is_some() {"),
    ]),
    ("first-frames-dropped", "frames that wait for a session are forgotten", [
        (P + "node/sessions.rs", "            self.publish();\n            self.flush_queue(now, p);",
         "            self.publish();\n            self.peers[p as usize].queue.clear();"),
    ]),
    ("fragments-mixed", "pieces of two frames meet", [
        (P + "opener.rs", "let key = (peer, header.id);", "let key = (peer, header.id & !1);"),
    ]),
    ("path-by-any-packet", "a packet's source moves the path, unproved", [
        (P + "node/heard.rs", "        self.heard_from(now, p);\n        let id = plain.session;",
         "        self.heard_from(now, p);\n        self.peers[p as usize].route = Some(plain.source.route());\n        self.dirty = true;\n        let id = plain.session;"),
    ]),
    ("group-frame-twice", "the control half sends a group frame to those that the sealer has sent it to", [
        (P + "node/switch.rs", ".filter(|p| sent.binary_search(p).is_err())", ".filter(|_| true)"),
    ]),
    ("lost-member-flooded", "what is for a member that is none any more goes to the bridges", [
        (P + "node/publish.rs", ".filter(|m| m.id != self.id)", ".filter(|m| self.is_live(&m.id))"),
    ]),
    ("payload-in-clear", "the kind says sealed, the bytes are not", [
        # Who opens knows of it, or nothing would arrive, and it would be that which is noticed.
        (A, "let sealed = self.inner.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), buf);",
         "let copy = buf.to_vec(); let sealed = self.inner.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), buf); buf.copy_from_slice(&copy);"),
        (A, "        debug_assert!(done.is_ok()", "        sealed[..plain.len()].copy_from_slice(plain);\n        debug_assert!(done.is_ok()"),
        (A, "        self.inner.open_in_place(nonce(counter), Aad::from(aad), buf)",
         "        let end = buf.len().saturating_sub(TAG_LEN);\n        let _ = self.inner.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), &mut buf[..end]);\n"
         "        self.inner.open_in_place(nonce(counter), Aad::from(aad), buf)"),
    ]),
    ("chunk-order-ignored", "parts of a superframe are joined in any order", [
        (P + "superframe.rs", "if h.tcp && (h.seq(frame) != self.next ||", "if h.tcp && (false ||"),
    ]),
    ("chunk-unpatched", "each part of a superframe has the first one's sequence number", [
        (P + "superframe.rs", "let seq = self.seq(head).wrapping_add(at as u32);", "let seq = self.seq(head);"),
    ]),
    ("chunk-too-large", "a part of a superframe is larger than the path by its own header", [
        (P + "sealer.rs", "mtu.checked_sub(CHUNK_OVERHEAD + h.payload)", "mtu.checked_sub(FRAME_OVERHEAD + h.payload)"),
    ]),
    ("path-unprobed", "a path is taken for an Ethernet before it has answered", [
        (P + "node/path_mtu.rs", "            size: BASE,\n            announced", "            size: 1472,\n            announced"),
    ]),
    ("black-hole-unseen", "nobody misses the reports of what does not arrive", [
        (P + "node/path_mtu.rs", "if expected.size <= BASE ||", "if true ||"),
    ]),
    ("path-by-any-answer", "an answer from anywhere makes a path to there", [
        (P + "node/paths.rs", "self.checks.iter_mut().find(|c| c.candidate.address == from)?;\n        let at",
         "self.checks.iter_mut().find(|c| c.asked.iter().any(|(a, _)| a == challenge))?;\n        let at"),
    ]),
    ("dead-path-kept", "a direct path is never left", [
        (P + "node/direct.rs", "let (Some(lost @ Route::Udp(_)), Some(_)) = (peer.route, peer.sending) else { return };",
         "let (Some(lost @ Route::Udp(_)), Some(_)) = (peer.route.filter(|_| false), peer.sending) else { return };"),
    ]),
]
