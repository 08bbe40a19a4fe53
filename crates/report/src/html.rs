//! `report.html`: one file with everything in it, for one run or for several side by side.

mod figures;
mod sections;
mod tables;

use crate::fold::Fold;
use crate::progress::count;
use crate::summary::Summary;
use crate::svg::escape;
use sections as section;

const STYLE: &str = include_str!("html/page.css");

/// A run to report on; what is absent is left out of the page.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub summary: &'a Summary,
    /// The fold of its trace, for who trained when.
    pub fold: Option<&'a Fold>,
    /// The effective scenario, as it was saved.
    pub scenario: Option<&'a str>,
    /// A figure of who holds what, as SVG made by this program: it is put in unescaped.
    pub partition_svg: Option<&'a str>,
}

/// The page of one run.
pub fn report(run: &Run) -> String {
    let info = &run.summary.info;
    let body = format!("{}{}", section::head(run.summary), body(run));
    page(&format!("{} · {}", info.run, info.method), &body)
}

/// The page of several runs: a table, overlaid curves, and each run folded away below.
pub fn comparison(title: &str, runs: &[Run]) -> String {
    let summaries: Vec<&Summary> = runs.iter().map(|run| run.summary).collect();
    let mut text = format!("<h1>{}</h1>\n", escape(title));
    text += &format!("<p class=\"sub\">{}</p>\n", count(runs.len() as u32, "run"));
    text += &section::notes(&summaries);
    text += &tables::comparison(&summaries);
    text += &figures::overlaid(&summaries);
    text += "<h2>Each run</h2>\n";
    for run in runs {
        let info = &run.summary.info;
        let name = escape(&format!("{} · {}", info.method, info.run));
        let run = format!("{}{}", section::facts(run.summary), body(run));
        text += &format!("<details class=\"run\"><summary>{name}</summary>\n{run}</details>\n");
    }
    page(title, &text)
}

fn body(run: &Run) -> String {
    let summary = run.summary;
    let mut text = section::notes(&[summary]);
    text += &figures::curves(summary);
    text += &figures::perturbations(summary);
    text += &tables::progress(summary);
    text += &tables::own_figures(summary);
    text += &tables::said(summary);
    text += &tables::leaks(summary);
    text += &tables::rounds(summary);
    text += &tables::troubles(summary);
    if let Some(fold) = run.fold {
        text += &figures::timeline(summary, fold);
    }
    text += &figures::classes(summary);
    text += &tables::fleet(summary);
    if let Some(svg) = run.partition_svg {
        text += &format!("<h2>Who holds what</h2>\n<figure class=\"holdings\">{svg}</figure>\n");
    }
    if let Some(scenario) = run.scenario {
        let scenario = escape(scenario);
        text += &format!(
            "<h2>Scenario</h2>\n<details><summary>as it ran, defaults included</summary><pre>{scenario}</pre></details>\n"
        );
    }
    text + &section::sameness(summary)
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}
