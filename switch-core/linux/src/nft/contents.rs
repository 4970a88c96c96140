//! The contents of a table, to notice changes by others, and changing elements of its sets in place. Replacing the table
//! instead takes the kernel tens of milliseconds, because it waits until no packet uses the old chains, and costs time
//! for every element.

use std::collections::{BTreeMap, BTreeSet};

use super::elements::{Element, SetChange};
use super::message::{Connection, Family, Kind, Transaction};
use crate::HostError;

/// The contents of a table when it was installed.
#[derive(Debug)]
pub(super) struct Contents {
    family: Family,
    table: String,
    /// Generation of nf_tables when this was last read or compared.
    generation: u32,
    exists: bool,
    /// Handles.
    pub(super) rules: Vec<u64>,
    /// Elements by the name of their set.
    pub(super) sets: BTreeMap<String, BTreeSet<Element>>,
}

impl Contents {
    /// Reads the current contents of a table.
    pub(super) fn read(
        connection: &mut Connection,
        family: Family,
        table: &str,
    ) -> Result<Self, HostError> {
        Ok(Self {
            family,
            table: table.to_owned(),
            // Read first, so that changes in the meantime have a later generation.
            generation: connection.generation()?,
            exists: connection.has_table(family, table)?,
            rules: connection.rules(family, table)?,
            sets: sets(connection, family, table)?,
        })
    }

    /// Whether the table still has exactly the same rules and set elements. One query to the kernel
    /// unless something changed in any table.
    pub(super) fn is_intact(&mut self, connection: &mut Connection) -> Result<bool, HostError> {
        if connection.generation()? == self.generation {
            return Ok(true);
        }
        let now = Self::read(connection, self.family, &self.table)?;
        let is_same = (now.exists, &now.rules, &now.sets) == (self.exists, &self.rules, &self.sets);
        if is_same {
            self.generation = now.generation;
        }
        Ok(is_same)
    }
}

/// The contents of a table that belongs to no process, so that anybody may change it.
#[derive(Debug)]
pub(crate) struct Installed {
    connection: Connection,
    contents: Contents,
}

impl Installed {
    /// Reads the current contents of a table.
    pub(super) fn read(
        mut connection: Connection,
        family: Family,
        table: &str,
    ) -> Result<Self, HostError> {
        let contents = Contents::read(&mut connection, family, table)?;
        Ok(Self { connection, contents })
    }

    /// Whether the table is unchanged.
    pub(crate) fn is_intact(&mut self) -> Result<bool, HostError> {
        self.contents.is_intact(&mut self.connection)
    }
}

impl Contents {
    /// Changes elements of sets, all or none.
    ///
    /// # Errors
    /// Missing privilege; somebody else changed the sets. Nothing has changed then.
    pub(super) fn change(
        &mut self,
        connection: &mut Connection,
        changes: Vec<SetChange>,
    ) -> Result<(), HostError> {
        let mut transaction = Transaction::new(self.family);
        let changes: Vec<_> = changes.into_iter().filter(|change| !change.is_empty()).collect();
        if changes.is_empty() {
            return Ok(());
        }
        // An interval that takes the place of another must not overlap it.
        for SetChange { set, removed, .. } in &changes {
            transaction.elements(Kind::DeleteElements, &self.table, set, None, removed);
        }
        for SetChange { set, added, .. } in &changes {
            transaction.elements(Kind::NewElements, &self.table, set, None, added);
        }
        connection
            .commit(transaction, || format!("change sets of nftables table {}", self.table))?;
        for SetChange { set, removed, added } in changes {
            let elements: &mut BTreeSet<Element> = self.sets.entry(set).or_default();
            for element in &removed {
                elements.remove(element);
            }
            elements.extend(added);
        }
        // If anybody else changed anything meanwhile, the next check reads everything.
        let now = connection.generation()?;
        if now == self.generation.wrapping_add(1) {
            self.generation = now;
        }
        Ok(())
    }
}

/// The elements of each set of a table.
fn sets(
    connection: &mut Connection,
    family: Family,
    table: &str,
) -> Result<BTreeMap<String, BTreeSet<Element>>, HostError> {
    let sets = connection.sets(family, table)?.into_iter();
    let read = |elements: Vec<Vec<u8>>| elements.iter().map(|e| Element::read(e)).collect();
    Ok(sets.map(|(name, elements)| (name, read(elements))).collect())
}
