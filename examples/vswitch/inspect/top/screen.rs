//! The screen of `top`, drawn with ratatui.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::app::App;
use super::sample::TABS;

/// Draws everything. Small terminals show less; no size makes it fail.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let [summary, tabs, table, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let strong = Style::default().add_modifier(Modifier::REVERSED);
    let bold = Style::default().add_modifier(Modifier::BOLD);
    let first = match (&app.lost, &app.sample) {
        (Some(why), _) => {
            Line::styled(format!("the switch does not answer, retrying: {why}"), strong)
        }
        (None, Some(sample)) => Line::styled(sample.summary.clone(), bold),
        (None, None) => Line::raw("waiting for the first sample"),
    };
    frame.render_widget(Paragraph::new(first), summary);
    let names = TABS.iter().enumerate().flat_map(|(at, name)| {
        let style = if at == app.tab { strong } else { Style::default() };
        [Span::styled(format!(" {} {name} ", at + 1), style), Span::raw(" ")]
    });
    frame.render_widget(Paragraph::new(Line::from_iter(names)), tabs);

    let height = usize::from(table.height.saturating_sub(1));
    let (rows, all) = app.rows(height);
    let sorted_by = app.sorted_by();
    if let Some(sample) = &app.sample {
        let head = &sample.tables[app.tab].head;
        let mark = |at: usize| if sorted_by == Some(at) { "↓" } else { "" };
        let head: Vec<String> =
            head.iter().enumerate().map(|(at, name)| format!("{name}{}", mark(at))).collect();
        let width = |at: usize| {
            let cells = rows.iter().map(|row| row[at].text.chars().count());
            cells.chain([head[at].chars().count()]).max().unwrap_or_default()
        };
        // The last column gets what is left.
        let widths: Vec<Constraint> = (0..head.len())
            .map(|at| match at + 1 == head.len() {
                true => Constraint::Min(4),
                false => Constraint::Length(width(at).min(40) as u16),
            })
            .collect();
        let lines = rows.iter().map(|row| Row::new(row.iter().map(|cell| cell.text.clone())));
        let shown = Table::new(lines, widths).header(Row::new(head).style(bold)).column_spacing(1);
        frame.render_widget(shown, table);
    }
    let left_out = app.sample.as_ref().map_or(0, |sample| sample.tables[app.tab].left_out);
    frame.render_widget(
        Paragraph::new(Line::raw(footer_text(app, rows.len(), all, left_out))),
        footer,
    );
}

fn footer_text(app: &App, shown: usize, all: usize, left_out: u64) -> String {
    if app.is_editing {
        return format!("filter: {}_   (enter: keep, esc: none)", app.filter);
    }
    let mut text = format!("{shown} of {all}");
    if left_out > 0 {
        text += &format!(" (+{left_out})");
    }
    if !app.filter.is_empty() {
        text += &format!(" | filter: {}", app.filter);
    }
    if app.is_paused {
        text += " | PAUSED";
    }
    text + " | tab/1-4 table  s sort  / filter  p pause  q quit"
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::app::{Key, tests::app};
    use super::*;

    fn lines(app: &mut App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, app)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        let rows = cells.chunks(usize::from(width.max(1)));
        rows.map(|row| row.concat().trim_end().to_owned()).collect()
    }

    #[test]
    fn every_table_in_80_by_24() {
        let mut app = app();
        let shown = lines(&mut app, 80, 24);
        assert_eq!(shown.len(), 24);
        assert_eq!(
            shown[0],
            "n1 epoch 7 | 2 pods | 1 connections | 1000 frames/s | 10 drops/s | 12 % busy"
        );
        assert_eq!(shown[1], " 1 pods   2 flows   3 drops   4 Services");
        assert_eq!(shown[2], "POD      RATE↓      SENT       RECEIVED FRAMES/s DROPS/s OPENED");
        assert_eq!(shown[3], "shop/web 1.0 Mbit/s 1.0 Mbit/s 0 bit/s  1.0      0.0     1");
        assert_eq!(shown[4], "shop/db  1.0 kbit/s 1.0 kbit/s 0 bit/s  1.0      0.0     1");
        assert_eq!(shown[23], "2 of 2 | tab/1-4 table  s sort  / filter  p pause  q quit");
        app.press(Key::Next);
        let shown = lines(&mut app, 80, 24);
        assert!(shown[2].starts_with("PROTO CLIENT        SERVER     RATE↓"), "{}", shown[2]);
        assert!(shown[3].starts_with("TCP   shop/web 4000 shop/db 80 1.0 kbit/s"), "{}", shown[3]);
        app.press(Key::Next);
        let shown = lines(&mut app, 80, 24);
        assert_eq!(shown[3], "policy_ingress 10.0     20    UDP shop/web -> shop/db, isolated");
        app.press(Key::Next);
        assert_eq!(lines(&mut app, 80, 24)[3], "shop/db 80/TCP 10.1.0.3:8080 5.0       10");
    }

    #[test]
    fn a_lost_switch_is_reported_and_the_last_tables_stay() {
        let mut app = app();
        app.take(Err("ctl.sock: Connection refused".to_owned()));
        app.press(Key::Char('p'));
        let shown = lines(&mut app, 80, 24);
        assert!(
            shown[0].starts_with("the switch does not answer, retrying: ctl.sock: Connection"),
            "{}",
            shown[0]
        );
        assert!(shown[3].starts_with("shop/web"));
        assert!(shown[23].contains("PAUSED"));
        assert_eq!(lines(&mut App::default(), 40, 4)[0], "waiting for the first sample");
    }

    #[test]
    fn no_size_makes_it_fail() {
        let mut app = app();
        for (width, height) in [(1, 1), (10, 3), (200, 2), (80, 5), (300, 100)] {
            lines(&mut app, width, height);
        }
        for key in ['/', 'w', 'e', 'b'] {
            app.press(Key::Char(key));
        }
        assert_eq!(lines(&mut app, 80, 10)[9], "filter: web_   (enter: keep, esc: none)");
    }
}
