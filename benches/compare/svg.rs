//! The medians as bars: an SVG picture whose text stays text, readable in light and dark mode.

use std::fmt::Write;

use crate::machine::{kernel, processors};
use crate::paths::{Group, Wire};
use crate::report::number;
use crate::results::{Results, Row};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Number of panels side by side.
const COLUMNS: usize = 2;
const GAP: f64 = 24.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN - GAP) / COLUMNS as f64;
/// Start of the bars in a panel, and maximum length of a bar.
const BAR_AT: f64 = 190.0;
const BAR: f64 = PANEL - BAR_AT - 62.0;
const LINE: f64 = 19.0;
const THICK: f64 = 12.0;
/// Space above the first bar for the title and subtitle.
const TITLE: f64 = 44.0;

/// A group of bars.
struct Panel {
    title: String,
    unit: String,
    load: &'static str,
    /// Where the longest bar may end.
    scale: f64,
    more_is_better: bool,
    bars: Vec<Bar>,
}

struct Bar {
    path: &'static str,
    value: f64,
    /// Range over the rounds, if it is known.
    range: Option<(f64, f64)>,
}

/// What a panel shows: the figure of a load, or the machine's cost for a unit of its work.
enum Show {
    Figure(&'static str),
    Cost,
}

/// A possible panel: title, load, figure, and paths.
struct Plan(&'static str, &'static str, Show, fn(Group) -> bool);

const P50: Show = Show::Figure("p50");
const ONLY: Show = Show::Figure("");

const PLANS: &[Plan] = &[
    Plan("TCP stream, IPv4, one node", "tcp_stream/ipv4", ONLY, one_node),
    Plan("TCP stream, IPv6, one node", "tcp_stream/ipv6", ONLY, one_node),
    Plan("60-byte frames, one node", "small_frames/ipv4", ONLY, one_node),
    Plan("Round trip, median, one node", "round_trip/ipv4", P50, one_node),
    Plan("Connect, request, close, one node", "connect_request_close/ipv4", ONLY, one_node),
    Plan("Processor time of a TCP stream, one node", "tcp_stream/ipv4", Show::Cost, one_node),
    Plan("TCP stream, IPv4, through a Service", "tcp_stream/ipv4", ONLY, one_service),
    Plan("Connections, 1 Service", "connect_request_close/ipv4", ONLY, one_service),
    Plan("Connections, 1,000 Services", "connect_request_close/ipv4", ONLY, many_services),
    Plan("Connections, 5,000 Services", "connect_request_close/ipv4", ONLY, most_services),
    Plan("TCP stream, IPv4, across two nodes", "tcp_stream/ipv4", ONLY, two_nodes),
    Plan("TCP, IPv4, two nodes, no tunnel offloads", "tcp_stream/ipv4", ONLY, two_nodes_packets),
    Plan("Round trip, median, across two nodes", "round_trip/ipv4", P50, two_nodes),
];

fn one_node(group: Group) -> bool {
    group == Group::OneNode
}

fn one_service(group: Group) -> bool {
    group == Group::Services(1)
}

fn many_services(group: Group) -> bool {
    group == Group::Services(1_000)
}

fn most_services(group: Group) -> bool {
    group == Group::Services(5_000)
}

fn two_nodes(group: Group) -> bool {
    group == Group::TwoNodes(Wire::Offloads)
}

fn two_nodes_packets(group: Group) -> bool {
    group == Group::TwoNodes(Wire::Packets)
}

/// See the module's description.
pub(crate) fn picture(results: &Results) -> String {
    let rows = results.rows();
    let mut panels: Vec<Panel> = PLANS.iter().filter_map(|plan| panel(&rows, plan)).collect();
    share_scales(&mut panels);
    let mut body = String::new();
    let mut y = 58.0;
    for pair in panels.chunks(COLUMNS) {
        for (column, panel) in pair.iter().enumerate() {
            draw(&mut body, panel, MARGIN + column as f64 * (PANEL + GAP), y);
        }
        let most = pair.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
        y += TITLE + most as f64 * LINE + 20.0;
    }
    let height = y + 8.0;
    let conditions = format!(
        "Linux {}, {} processors, {} rounds of {} s; medians, thin lines: range over the rounds",
        kernel(),
        processors(),
        results.rounds.len(),
        results.seconds
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"Data paths compared\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"head\" x=\"{MARGIN}\" y=\"26\">What two pods get from each other</text>\n\
         <text class=\"note\" x=\"{MARGIN}\" y=\"44\">{}</text>\n\
         {}{body}</svg>\n",
        escape(&conditions),
        legend(),
    )
}

/// Light colours, and dark ones if the reader's system uses dark mode.
const STYLE: &str = "
text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
.head { font-size: 16px; font-weight: 600 }
.title { font-size: 13px; font-weight: 600 }
.note { font-size: 11px; fill: #59636e }
.path { text-anchor: end }
.ground { fill: #ffffff }
.ours { fill: #2563eb }
.kernel { fill: #8c959f }
.ovs { fill: #c2752b }
.range { stroke: #1f2328; stroke-width: 1; opacity: .7 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9198a1 }
  .ground { fill: #0d1117 }
  .ours { fill: #6ea8fe }
  .kernel { fill: #6e7681 }
  .ovs { fill: #d99a55 }
  .range { stroke: #e6edf3 }
}
";

fn legend() -> String {
    let mut text = String::new();
    let entries = [("ours", "podswitch", 262.0), ("kernel", "kernel", 170.0)];
    for (class, name, from_end) in entries.into_iter().chain([("ovs", "Open vSwitch", 100.0)]) {
        let x = WIDTH - MARGIN - from_end;
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"16\" width=\"12\" height=\"12\" rx=\"2\"/>\
             <text x=\"{}\" y=\"26\">{name}</text>",
            x + 17.0
        );
    }
    text
}

fn panel(rows: &[Row], Plan(title, load, show, of): &Plan) -> Option<Panel> {
    let figure = match show {
        Show::Figure(figure) => *figure,
        Show::Cost => "",
    };
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|r| r.load.name == *load && r.figure.name == figure && of(r.group))
        .collect();
    let first = *rows.first()?;
    let (unit, more_is_better) = match show {
        Show::Figure(_) => (first.figure.unit.to_owned(), first.figure.more_is_better),
        Show::Cost => (format!("ns/{}", first.load.work), false),
    };
    let bar = |row: &Row| match show {
        Show::Figure(_) => Bar {
            path: row.path,
            value: row.value.median,
            range: Some((row.value.min, row.value.max)),
        },
        Show::Cost => Bar { path: row.path, value: row.cost.machine_ns, range: None },
    };
    let bars: Vec<Bar> = rows.iter().map(|row| bar(row)).collect();
    let ends = bars.iter().map(|bar| bar.range.map_or(bar.value, |(_, most)| most));
    Some(Panel {
        title: (*title).to_owned(),
        unit,
        load,
        scale: ends.fold(f64::MIN_POSITIVE, f64::max),
        more_is_better,
        bars,
    })
}

/// Panels of the same figure have the same scale, so that their bars can be compared.
fn share_scales(panels: &mut [Panel]) {
    for number in 0..panels.len() {
        let (load, unit) = (panels[number].load, panels[number].unit.clone());
        let alike = || |panel: &&Panel| panel.load == load && panel.unit == unit;
        let most = panels.iter().filter(alike()).map(|panel| panel.scale);
        let most = most.fold(f64::MIN_POSITIVE, f64::max);
        panels[number].scale = most;
    }
}

fn draw(body: &mut String, panel: &Panel, x: f64, y: f64) {
    let better = if panel.more_is_better { "more is better" } else { "less is better" };
    let _ = writeln!(
        body,
        "<text class=\"title\" x=\"{x}\" y=\"{}\">{}</text>\
         <text class=\"note\" x=\"{x}\" y=\"{}\">{}, {better}</text>",
        y + 18.0,
        escape(&panel.title),
        y + 34.0,
        escape(&panel.unit),
    );
    for (number, bar) in panel.bars.iter().enumerate() {
        let top = y + TITLE + number as f64 * LINE;
        draw_bar(body, bar, panel.scale, x, top);
    }
}

fn draw_bar(body: &mut String, bar: &Bar, scale: f64, x: f64, top: f64) {
    let at = |value: f64| x + BAR_AT + BAR * (value / scale).clamp(0.0, 1.0);
    let (start, end, text) = (x + BAR_AT, at(bar.value), top + THICK - 2.0);
    let _ = writeln!(
        body,
        "<text class=\"path\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>\
         <rect class=\"{}\" x=\"{start:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{THICK}\" \
         rx=\"2\"/>",
        start - 6.0,
        escape(&label(bar.path)),
        class(bar.path),
        end - start,
    );
    let mut after = end;
    if let Some((least, most)) = bar.range {
        let middle = top + THICK / 2.0;
        let _ = writeln!(
            body,
            "<line class=\"range\" x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\"/>",
            at(least),
            at(most),
        );
        after = after.max(at(most));
    }
    let value = escape(&number(bar.value));
    let _ = writeln!(body, "<text x=\"{:.1}\" y=\"{text:.1}\">{value}</text>", after + 5.0);
}

/// A path's name without the part that the panel's title already contains.
fn label(path: &str) -> String {
    let end = |part: &&str| !["1", "1000", "5000", "services", "packets"].contains(part);
    let parts: Vec<&str> = path.split('/').filter(end).collect();
    parts.join(" ").replace("2_workers", "2 workers")
}

fn class(path: &str) -> &'static str {
    match path.split('/').next() {
        Some("podswitch") => "ours",
        Some("ovs") => "ovs",
        _ => "kernel",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
