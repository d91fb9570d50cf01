//! Our tables of distributions against those that iproute2 installs.

use agent::model::distribution::{Distribution, Table};
use anyhow::{Context as _, Result};

#[test]
fn tables_are_those_of_tc() -> Result<()> {
    for name in ["normal", "pareto", "paretonormal"] {
        let file = crate::cases::dist_file(name)?;
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let theirs = Distribution::Table(Table::parse(name, &text)?);
        let ours = Distribution::named(name).context("not one of ours")?;
        let (ours, theirs) = (ours.table().context(name)?, theirs.table().context(name)?);
        let differences: Vec<_> =
            ours.iter().zip(theirs.iter()).enumerate().filter(|(_, (a, b))| a != b).collect();
        assert_eq!((ours.len(), differences), (theirs.len(), vec![]), "{name}");
    }
    Ok(())
}
