//! nftables, spoken to directly: one table of our own, in which only the elements of sets and maps ever change.
//!
//! `nft list table inet qengine` shows it. A packet's way through it:
//!
//! ```text
//! arriving      drops what a container sends from or to the host's loopback addresses, which `route_localnet` on the
//!               bridges would let through (CVE-2020-8558)
//! prerouting    published ports of this host: translate the destination; not of 127.0.0.0/8, which nobody
//!               outside may reach
//! output        the same for connections of the host itself, those to 127.0.0.1 included
//! forward       between bridges, and to containers from outside: only what is published (CVE-2025-54410); between
//!               containers of one bridge and from containers to the outside: all, unless the network is internal
//! postrouting   containers appear outside under the host's address; so does the host's loopback address, and a
//!               container that reaches another through a published port, or the answer would take a shorter way
//! ```
//!
//! All of it for IPv6 too, on networks that have it; but ports are not reached through `::1`, which the kernel lets
//! nobody translate.
//!
//! Whatever is `accept`ed here may still be dropped by tables of others; what is dropped here stays dropped.

use super::{Failure, PortRule, Rules};

pub(super) mod batch;
mod expression;
mod layout;

use batch::{Attributes, Batch, Channel, FAMILY_INET, NLM_F_CREATE, Operation, attribute};

/// Elements that fit one message's list, whose length is a 16-bit number, many times over.
const ELEMENTS_A_MESSAGE: usize = 256;

/// Our table.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    channel: Channel,
}

impl Table {
    /// Our table; changes nothing yet. Fails where the kernel has no nftables.
    pub(super) fn open(suffix: Option<&str>) -> Result<Table, Failure> {
        let table = Table {
            name: suffix.map_or("qengine".to_owned(), |suffix| format!("qengine_{suffix}")),
            channel: Channel::open()?,
        };
        // Netfilter without nftables shows at the first question only.
        table.is_present()?;
        Ok(table)
    }

    /// Whether the table is there.
    pub(super) fn is_present(&self) -> Result<bool, Failure> {
        let found = self
            .channel
            .query(Operation::GetTable, FAMILY_INET, &self.table())?;
        Ok(found.is_some())
    }

    /// Puts the whole table in the place of what was there.
    pub(super) fn replace(&self, rules: &Rules) -> Result<(), Failure> {
        let mut batch = Batch::new();
        // Nothing to delete is worth a question: what is deleted has to be waited for.
        if self.is_present()? {
            batch.add(Operation::DeleteTable, 0, &self.table());
        }
        batch.add(Operation::NewTable, NLM_F_CREATE, &self.table());
        layout::add_sets(&mut batch, &self.name);
        layout::add_chains(&mut batch, &self.name);
        for (set, elements) in layout::elements(rules) {
            self.change(&mut batch, Operation::NewElement, set, &elements);
        }
        self.channel.commit(batch)
    }

    pub(super) fn add_ports(&self, ports: &[PortRule]) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for port in ports {
            let (map, key, value) = layout::port(port);
            let element = layout::mapping(&key, &value);
            self.change(&mut batch, Operation::NewElement, map, &[element]);
        }
        self.channel.commit(batch)
    }

    pub(super) fn remove_ports(&self, ports: &[PortRule]) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for port in ports {
            let (map, key, _) = layout::port(port);
            self.change(
                &mut batch,
                Operation::DeleteElement,
                map,
                &[layout::member(&key)],
            );
        }
        self.channel.commit(batch)
    }

    pub(super) fn clear(&self) -> Result<(), Failure> {
        if !self.is_present()? {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.add(Operation::DeleteTable, 0, &self.table());
        self.channel.commit(batch)
    }

    /// What a chain in iptables' own table `filter` is like, if iptables works through nftables and has one.
    pub(super) fn iptables_chain(&self, family: u8, chain: &str) -> Option<ForeignChain> {
        // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        let attributes = Attributes::new().text(1, "filter").text(3, chain);
        let found = self
            .channel
            .query(Operation::GetChain, family, &attributes)
            .ok()??;
        let number = |kind| {
            let bytes = attribute(&found, kind)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        Some(ForeignChain {
            // NFTA_CHAIN_POLICY: NF_DROP is 0. NFTA_CHAIN_USE counts rules.
            drops: number(5) == Some(0),
            is_empty: number(6).unwrap_or(0) == 0,
        })
    }

    /// NFTA_TABLE_NAME
    fn table(&self) -> Attributes {
        Attributes::new().text(1, &self.name)
    }

    fn change(&self, batch: &mut Batch, operation: Operation, set: &str, elements: &[Attributes]) {
        for elements in elements.chunks(ELEMENTS_A_MESSAGE) {
            // NFTA_LIST_ELEM
            let list = elements
                .iter()
                .fold(Attributes::new(), |list, element| list.nested(1, element));
            // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
            let attributes = Attributes::new()
                .text(1, &self.name)
                .text(2, set)
                .nested(3, &list);
            let flags = match operation {
                Operation::NewElement => NLM_F_CREATE,
                _ => 0,
            };
            batch.add(operation, flags, &attributes);
        }
    }
}

/// See [`Table::iptables_chain`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ForeignChain {
    /// What no rule decides is dropped.
    pub(super) drops: bool,
    /// It has no rules.
    pub(super) is_empty: bool,
}
