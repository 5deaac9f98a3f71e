//! Line charts with two axes as SVG, written without a library.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 56.0;
/// Colours that stay distinct for colour-blind readers and in grey.
const COLOURS: [&str; 4] = ["#0b5cad", "#d95f02", "#1b7f5c", "#7b4ba0"];

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// An axis: the map from its values to 0..1, and its ticks with their labels.
#[derive(Clone, Debug)]
pub struct Axis {
    title: String,
    min: f64,
    max: f64,
    logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis from zero to at least `max`, with about `count` ticks at round numbers.
    pub fn linear(title: &str, max: f64, count: f64) -> Axis {
        let max = if max > 0.0 { max } else { 1.0 };
        let power = 10f64.powf((max / count).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = steps.into_iter().find(|step| max / step <= count).unwrap_or(steps[3]);
        let last = (max / step).ceil() as u64;
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let tick = |at: u64| (at as f64 * step, grouped(at as f64 * step, digits));
        let ticks = (0..=last).map(tick).collect();
        Axis { title: title.into(), min: 0.0, max: last as f64 * step, logarithmic: false, ticks }
    }

    /// A logarithmic axis around `min` to `max`, with ticks at 1, 2 and 5 times the powers of ten.
    pub fn logarithmic(title: &str, min: f64, max: f64) -> Axis {
        let min = if min > 0.0 { min } else { 1e-3 };
        let round: Vec<f64> = (-6..=6)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)))
            .collect();
        let from = round.iter().copied().rfind(|number| *number <= min).unwrap_or(round[0]);
        let to = round.iter().copied().find(|number| *number >= max.max(from * 1.5));
        let to = to.unwrap_or(round[round.len() - 1]);
        let shown = round.into_iter().filter(|number| (from..=to).contains(number));
        let ticks =
            shown.map(|number| (number, format!("{}", (number * 1e6).round() / 1e6))).collect();
        Axis { title: title.into(), min: from, max: to, logarithmic: true, ticks }
    }

    /// An axis of percentiles, on which each further nine takes the same distance.
    pub fn nines(title: &str, nines: u32) -> Axis {
        let mut ticks = vec![(0.0, "0".into()), (0.5f64.log10().abs(), "50".into())];
        for count in 1..=nines {
            let text = match count {
                1 => "90".into(),
                2 => "99".into(),
                _ => format!("99.{}", "9".repeat(count as usize - 2)),
            };
            ticks.push((f64::from(count), text));
        }
        Axis { title: title.into(), min: 0.0, max: f64::from(nines), logarithmic: false, ticks }
    }

    fn place(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.min) / self.min).log10() / (self.max / self.min).log10()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        place.clamp(0.0, 1.0)
    }
}

/// A number with commas between its thousands.
fn grouped(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    let whole = text.split('.').next().unwrap_or_default().len();
    let mut out = String::new();
    for (at, letter) in text.chars().enumerate() {
        if at > 0 && at < whole && (whole - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(letter);
    }
    out
}

fn x_of(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn y_of(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

/// Draws a chart of lines. `events` are vertical lines with a text.
pub fn draw(
    title: &str,
    (x, y): (&Axis, &Axis),
    lines: &[Series],
    events: &[(f64, String)],
) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">{}</text>\n",
        escaped(title)
    );
    draw_axes(&mut svg, x, y);
    for (at, text) in events {
        let x = x_of(x, *at);
        let (bottom, above) = (HEIGHT - BOTTOM, TOP + 14.0);
        // The text goes to the side with more room.
        let (beside, anchor) = if x < WIDTH / 2.0 { (x + 5.0, "start") } else { (x - 5.0, "end") };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#b00020\" \
             stroke-dasharray=\"4 3\"/>\n\
             <text x=\"{beside:.1}\" y=\"{above}\" text-anchor=\"{anchor}\" \
             fill=\"#b00020\">{}</text>",
            escaped(text)
        );
    }
    for (at, series) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points: Vec<String> = series
            .points
            .iter()
            .map(|(left, up)| format!("{:.1},{:.1}", x_of(x, *left), y_of(y, *up)))
            .collect();
        let legend = LEFT + at as f64 * 150.0;
        let (end, name) = (legend + 22.0, legend + 28.0);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-linejoin=\"round\"/>\n\
             <line x1=\"{legend}\" y1=\"38\" x2=\"{end}\" y2=\"38\" stroke=\"{colour}\" \
             stroke-width=\"3\"/>\n<text x=\"{name}\" y=\"42\">{}</text>",
            points.join(" "),
            escaped(&series.name)
        );
    }
    svg + "</svg>\n"
}

fn draw_axes(svg: &mut String, x: &Axis, y: &Axis) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for (value, text) in &x.ticks {
        let (at, under) = (x_of(x, *value), bottom + 18.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#eee\"/>\n\
             <text x=\"{at:.1}\" y=\"{under}\" text-anchor=\"middle\">{text}</text>"
        );
    }
    for (value, text) in &y.ticks {
        let (at, before) = (y_of(y, *value), LEFT - 8.0);
        let base = at + 4.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" \
             stroke=\"#e4e4e4\"/>\n\
             <text x=\"{before}\" y=\"{base:.1}\" text-anchor=\"end\">{text}</text>"
        );
    }
    let (middle, low) = (f64::midpoint(LEFT, right), HEIGHT - 14.0);
    let halfway = f64::midpoint(TOP, bottom);
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#666\"/>\n\
         <text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(18 {halfway}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        escaped(&x.title),
        escaped(&y.title)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_at_round_numbers() {
        let axis = Axis::linear("", 43_210.0, 6.0);
        assert_eq!(texts(&axis), ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]);
        assert_eq!(texts(&Axis::linear("", 1.9, 8.0))[..3], ["0.0", "0.5", "1.0"]);
        assert_eq!(texts(&Axis::linear("", 0.0, 2.0)), ["0.0", "0.5", "1.0"]);
        assert_eq!(texts(&Axis::logarithmic("", 0.07, 3.0))[..3], ["0.05", "0.1", "0.2"]);
        assert_eq!(texts(&Axis::nines("", 4)), ["0", "50", "90", "99", "99.9", "99.99"]);
    }

    #[test]
    fn places_lie_within_the_frame() {
        let axis = Axis::logarithmic("", 1.0, 100.0);
        assert_eq!(
            [0.1, 1.0, 10.0, 100.0, 1e9].map(|at| axis.place(at)),
            [0.0, 0.0, 0.5, 1.0, 1.0]
        );
        let odd = Axis::logarithmic("", 0.0, 0.0);
        assert!(odd.place(0.0).is_finite() && odd.max > odd.min);
    }

    #[test]
    fn a_chart_holds_its_lines_and_events() {
        let (x, y) = (Axis::linear("s", 2.0, 4.0), Axis::linear("a second", 10.0, 5.0));
        let line = Series { name: "a<b".into(), points: vec![(0.0, 0.0), (2.0, 10.0)] };
        let svg = draw("title", (&x, &y), &[line], &[(1.0, "killed".into())]);
        assert!(svg.contains("points=\"80.0,364.0 836.0,56.0\""), "{svg}");
        assert!(svg.contains("a&lt;b") && svg.contains("x1=\"458.0\""), "{svg}");
    }
}
