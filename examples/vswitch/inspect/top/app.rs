//! The state of the screen, independent of any terminal: the selected table, its order, and the
//! effect of keys.

use super::sample::{Cell, Sample, TABS};

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Next,
    Previous,
    Up,
    Down,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    Char(char),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct App {
    pub(super) tab: usize,
    /// For each table, the index of the numeric column that it is sorted by.
    sort: [usize; 4],
    pub(super) filter: String,
    pub(super) is_editing: bool,
    pub(super) is_paused: bool,
    pub(super) has_ended: bool,
    /// Number of rows above the first visible one.
    scroll: usize,
    pub(super) sample: Option<Sample>,
    /// The error, if the switch does not respond.
    pub(super) lost: Option<String>,
}

impl App {
    /// Updates the sample. While the screen is paused, samples are ignored.
    pub(super) fn take(&mut self, result: Result<Sample, String>) {
        match result {
            Ok(sample) => {
                self.lost = None;
                if !self.is_paused || self.sample.is_none() {
                    self.sample = Some(sample);
                }
            }
            Err(why) => self.lost = Some(why),
        }
    }

    pub(super) fn press(&mut self, key: Key) {
        if key == Key::Interrupt {
            self.has_ended = true;
            return;
        }
        if self.is_editing {
            match key {
                Key::Char(c) if self.filter.chars().count() < 60 => self.filter.push(c),
                Key::Backspace => drop(self.filter.pop()),
                Key::Enter => self.is_editing = false,
                Key::Escape => {
                    self.is_editing = false;
                    self.filter.clear();
                }
                _ => {}
            }
            self.scroll = 0;
            return;
        }
        match key {
            Key::Next => self.show((self.tab + 1) % TABS.len()),
            Key::Previous => self.show((self.tab + TABS.len() - 1) % TABS.len()),
            Key::Char(c @ '1'..='4') => self.show(c as usize - '1' as usize),
            Key::Char('q') => self.has_ended = true,
            Key::Char('p') => self.is_paused = !self.is_paused,
            Key::Char('s') => self.sort[self.tab] += 1,
            Key::Char('/') => self.is_editing = true,
            Key::Escape => self.filter.clear(),
            Key::Up => self.scroll = self.scroll.saturating_sub(1),
            Key::Down => self.scroll += 1,
            Key::PageUp => self.scroll = self.scroll.saturating_sub(10),
            Key::PageDown => self.scroll += 10,
            _ => {}
        }
    }

    fn show(&mut self, tab: usize) {
        self.tab = tab;
        self.scroll = 0;
    }

    /// The column that the table is sorted by.
    pub(super) fn sorted_by(&self) -> Option<usize> {
        let numeric = self.sample.as_ref()?.tables[self.tab].numeric();
        numeric.get(self.sort[self.tab] % numeric.len().max(1)).copied()
    }

    /// The visible rows for a height of `height`, and the number of all rows without the filter.
    pub(super) fn rows(&mut self, height: usize) -> (Vec<Vec<Cell>>, usize) {
        let column = self.sorted_by().unwrap_or(usize::MAX);
        let Some(sample) = &self.sample else { return (Vec::new(), 0) };
        let table = &sample.tables[self.tab];
        let rows = table.view(column, &self.filter);
        self.scroll = self.scroll.min(rows.len().saturating_sub(height));
        (
            rows.iter().skip(self.scroll).take(height).map(|row| (*row).clone()).collect(),
            table.rows.len(),
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::sample::{Sampler, tests::answers};
    use super::*;

    /// After two samples, a second apart.
    pub(in super::super) fn app() -> App {
        let mut sampler = Sampler::new();
        sampler.sample(&answers(1), None);
        let mut app = App::default();
        app.take(Ok(sampler.sample(&answers(2), Some(Duration::from_secs(1)))));
        app
    }

    fn names(app: &mut App) -> Vec<String> {
        app.rows(10).0.iter().map(|row| row[0].text.clone()).collect()
    }

    #[test]
    fn keys_change_table_order_and_filter() {
        let mut app = app();
        assert_eq!(names(&mut app), ["shop/web", "shop/db"]);
        app.press(Key::Char('s'));
        assert_eq!(app.sorted_by(), Some(2));
        (0..5).for_each(|_| app.press(Key::Char('s')));
        assert_eq!(app.sorted_by(), Some(1), "round");
        for key in [Key::Char('/'), Key::Char('d'), Key::Char('q')] {
            app.press(key);
        }
        assert!(names(&mut app).is_empty() && !app.has_ended, "q is a letter of the filter");
        app.press(Key::Backspace);
        app.press(Key::Enter);
        assert_eq!(names(&mut app), ["shop/db"]);
        app.press(Key::Escape);
        assert_eq!(names(&mut app).len(), 2);
        app.press(Key::Previous);
        assert_eq!(app.tab, 3);
        app.press(Key::Next);
        app.press(Key::Char('3'));
        assert_eq!((app.tab, names(&mut app)), (2, vec!["policy_ingress".to_owned()]));
        app.press(Key::Char('q'));
        assert!(app.has_ended);
    }

    #[test]
    fn paused_screens_keep_their_sample_and_show_errors() {
        let mut app = app();
        let shown = app.sample.clone();
        app.press(Key::Char('p'));
        app.take(Ok(Sample::default()));
        assert_eq!(app.sample, shown);
        app.take(Err("no switch".to_owned()));
        assert_eq!((app.lost.as_deref(), &app.sample), (Some("no switch"), &shown));
        app.press(Key::Char('p'));
        app.take(Ok(Sample::default()));
        assert_eq!((app.lost.as_deref(), &app.sample), (None, &Some(Sample::default())));
        app.press(Key::Interrupt);
        assert!(app.has_ended);
    }

    #[test]
    fn scrolling_stops_at_the_last_row() {
        let mut app = app();
        app.press(Key::PageDown);
        let (rows, all) = app.rows(1);
        assert_eq!((rows[0][0].text.as_str(), all), ("shop/db", 2));
        app.press(Key::Up);
        assert_eq!(app.rows(1).0[0][0].text, "shop/web");
    }
}
