"use strict";
// Shows the values of each chart under the pointer, or by the arrow keys.
(() => {
  const charts = JSON.parse(document.getElementById("curves").textContent);
  const svgNamespace = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  const write = (value) =>
    Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
      ? value.toExponential(3)
      : String(Number(value.toPrecision(4)));

  function nearest(points, step) {
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle;
      else high = middle;
    }
    return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? low : high;
  }

  document.querySelectorAll("figure[data-chart]").forEach((figure) => {
    const chart = charts[figure.dataset.chart];
    const svg = figure.querySelector("svg");
    const steps = [...new Set(chart.lines.flatMap((line) => line.points.map((p) => p[0])))];
    steps.sort((a, b) => a - b);
    const marks = document.createElementNS(svgNamespace, "g");
    svg.append(marks);
    let at = steps.length - 1;

    const x = (step) => chart.left + (step / chart.x_end) * (chart.right - chart.left);
    const y = (value) =>
      chart.bottom - ((value - chart.low) / (chart.high - chart.low)) * (chart.bottom - chart.top);

    function add(name, attributes) {
      const element = document.createElementNS(svgNamespace, name);
      Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
      marks.append(element);
    }

    function show(step) {
      const lines = [`${chart.x_name} ${Math.round(step).toLocaleString("en")}`];
      marks.replaceChildren();
      add("line", { class: "hair", x1: x(step), x2: x(step), y1: chart.top, y2: chart.bottom });
      for (const line of chart.lines) {
        const i = nearest(line.points, step);
        const [own, value] = line.points[i];
        let text = `${line.name} ${write(value)}`.trim();
        if (line.raw) text += ` (measured ${write(line.raw[i])})`;
        if (line.intervals) text += ` (95 %: ${line.intervals[i].map((end) => String(Number(end.toPrecision(3)))).join(" to ")})`;
        if (Math.round(own) !== Math.round(step)) text += `, ${chart.x_name} ${Math.round(own)}`;
        lines.push(text);
        add("circle", { class: `d${line.color}`, cx: x(own), cy: y(value), r: 4 });
      }
      tip.textContent = lines.join("\n");
      tip.hidden = false;
      const box = svg.getBoundingClientRect();
      const place = box.left + (x(step) / chart.width) * box.width;
      const left = Math.min(place + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
      tip.style.top = `${box.bottom + window.scrollY - 4}px`;
    }

    function hide() {
      marks.replaceChildren();
      tip.hidden = true;
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const inside = ((event.clientX - box.left) / box.width) * chart.width;
      const step = ((inside - chart.left) / (chart.right - chart.left)) * chart.x_end;
      at = nearest(steps.map((each) => [each]), step);
      show(steps[at]);
    });
    svg.addEventListener("pointerleave", hide);
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, tip.hidden ? at : at + move));
      show(steps[at]);
    });
  });

  // Open collapsed blocks while printing.
  const folded = [];
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((each) => {
      folded.push(each);
      each.open = true;
    });
  });
  window.addEventListener("afterprint", () => {
    folded.splice(0).forEach((each) => (each.open = false));
  });
})();
