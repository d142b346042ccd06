"use strict";
// Draws the charts and turns packed downloads into plain ones. The page is complete without it but for both.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const source = document.getElementById("plotly");
  const drawn = new Set();
  const hidden = new Set();

  function unpack(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  }

  // Links to the packed files become links to the files themselves.
  function upgrade(link) {
    const packed = link.getAttribute("href").split(",")[1];
    const name = link.dataset.name;
    link.textContent = name;
    link.addEventListener("click", async (event) => {
      if (link.download === name) return;
      event.preventDefault();
      const content = await unpack(packed).blob();
      link.href = URL.createObjectURL(content);
      link.download = name;
      link.click();
    });
  }

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  function painted(trace) {
    const own = trace.meta.hue === undefined ? colour("roof") : colour(`hue-${trace.meta.hue}`);
    const out = { ...trace, line: { ...trace.line, color: own }, hoverinfo: "text", showlegend: false };
    if (trace.marker) {
      const hollow = [].concat(trace.marker.symbol || "").some((one) => one.includes("open"));
      const edge = hollow ? { width: 1.8, color: own } : { width: 1.2, color: colour("paper") };
      out.marker = { ...trace.marker, color: own, line: edge };
    }
    if (trace.type === "heatmap") out.colorscale = [[0, colour("panel")], [1, own]];
    if (trace.error_y) out.error_y = { ...trace.error_y, color: own };
    out.visible = !hidden.has(trace.meta.look);
    return out;
  }

  function texts(trace, figure) {
    if (!trace.meta.texts) return trace.text;
    return trace.text.map((line, i) =>
      trace.meta.texts[i] === null ? "" : `${figure.texts[trace.meta.texts[i]]}<br>${line}`);
  }

  function styled(axis) {
    return {
      ...axis, gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false, automargin: true,
      ticks: "outside", tickcolor: colour("rule"), minor: { showgrid: false },
      title: { text: axis.title.text, font: { size: 12 }, standoff: 8 },
    };
  }

  function layout(figure, plot) {
    const narrow = plot.clientWidth < 480;
    return {
      ...figure.layout,
      xaxis: styled(figure.layout.xaxis), yaxis: styled(figure.layout.yaxis),
      annotations: (figure.layout.annotations || []).map((one) => ({
        ...one, font: { size: narrow ? 10 : 11, color: colour("roof") },
      })),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12, color: colour("ink") },
      hoverlabel: {
        align: "left", bgcolor: colour("panel"), bordercolor: colour("muted"),
        font: {
          family: getComputedStyle(document.body).fontFamily, size: narrow ? 9.5 : 11.5, color: colour("ink"),
        },
      },
      ...(root.classList.contains("printing") ? { width: plot.clientWidth, height: plot.clientHeight } : { autosize: true }),
      margin: { l: 48, r: narrow ? 10 : 18, t: 14, b: 44 }, dragmode: narrow ? false : "zoom",
    };
  }

  const config = {
    responsive: true, displaylogo: false, showLink: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // Turns the names on diagonals as the axes lie, and lifts them off their lines.
  function turn(plot) {
    const full = plot._fullLayout, x = full.xaxis, y = full.yaxis;
    const across = x._length / (x.range[1] - x.range[0]), up = y._length / (y.range[1] - y.range[0]);
    const angle = Math.atan2(up, across), change = {};
    (plot.layout.annotations || []).forEach((one, i) => {
      if (one.name !== "slope") return;
      const degrees = -angle * 180 / Math.PI;
      if (Math.abs((one.textangle || 0) - degrees) < 0.3) return;
      change[`annotations[${i}].textangle`] = degrees;
      change[`annotations[${i}].xshift`] = -10 * Math.sin(angle);
      change[`annotations[${i}].yshift`] = 10 * Math.cos(angle);
    });
    if (Object.keys(change).length) Plotly.relayout(plot, change);
  }

  function draw(figure) {
    const plot = document.getElementById(figure.id);
    const data = figure.data.map((trace) => ({ ...painted(trace), text: texts(trace, figure) }));
    const touch = matchMedia("(hover: none)").matches;
    Plotly.react(plot, data, layout(figure, plot), { ...config, displayModeBar: touch ? false : "hover" });
    turn(plot);
    if (!drawn.has(figure)) {
      plot.on("plotly_relayout", () => turn(plot));
      plot.on("plotly_afterplot", () => turn(plot));
    }
    drawn.add(figure);
  }

  const redraw = () => drawn.forEach(draw);

  function toggle(button) {
    const look = Number(button.dataset.look);
    const off = !hidden.has(look);
    off ? hidden.add(look) : hidden.delete(look);
    document.querySelectorAll(`[data-look="${look}"]`).forEach((one) => one.setAttribute("aria-pressed", String(!off)));
    redraw();
  }

  // In a record that is closed there is no width to draw for.
  const shut = (figure) => document.getElementById(figure.id).closest("details:not([open])");

  // One after another, so that the page answers while they come; all at once before it is printed.
  function drawNext(rest) {
    if (!rest.length) { root.classList.add("drawn"); return; }
    if (!drawn.has(rest[0]) && !shut(rest[0])) draw(rest[0]);
    setTimeout(drawNext, 0, rest.slice(1));
  }

  function opened(event) {
    if (!event.target.open || !window.Plotly) return;
    figures.filter((one) => event.target.contains(document.getElementById(one.id)) && !shut(one)).forEach((one) => {
      draw(one);
      Plotly.Plots.resize(document.getElementById(one.id));
    });
  }

  function beforePrint() {
    root.classList.add("printing");
    document.querySelectorAll("details:not([open])").forEach((one) => { one.open = true; one.dataset.shut = ""; });
    if (window.Plotly) figures.forEach(draw);
  }

  function afterPrint() {
    root.classList.remove("printing");
    document.querySelectorAll("details[data-shut]").forEach((one) => { one.open = false; delete one.dataset.shut; });
    redraw();
  }

  // A link to a record or to a section of one opens it.
  function reveal() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const closed = target && target.closest("details");
    if (closed && !closed.open) { closed.open = true; target.scrollIntoView(); }
  }

  async function begin() {
    if (!window.DecompressionStream) return;
    document.querySelectorAll("a.file").forEach(upgrade);
    if (!source) return;
    const script = document.createElement("script");
    script.textContent = await unpack(source.textContent).text();
    source.remove();
    root.classList.add("js");
    document.head.append(script);
    drawNext(figures);
    document.addEventListener("toggle", opened, true);
    document.querySelectorAll("[data-look]").forEach((one) => one.addEventListener("click", () => toggle(one)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("beforeprint", beforePrint);
    addEventListener("afterprint", afterPrint);
  }

  addEventListener("hashchange", reveal);
  reveal();
  begin();
})();
