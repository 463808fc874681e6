package main

import (
	_ "embed"
	"io"
	"math"
	"strconv"
	"strings"
	"text/template"
)

// A picture has a panel for each figure of a curve, two in a row. All lengths are pixels.
const (
	panelWidth, panelHeight = 360, 190 // of its axes
	panelLeft, panelTop     = 30, 60   // from where a panel begins to its axes
	cellWidth, cellHeight   = 420, 290
)

//go:embed curve.svg.tmpl
var pictureText string

// picture draws a curve: sizes on a logarithmic axis, each figure on one from 0 to its greatest.
func picture(w io.Writer, d drawn) error {
	t, err := template.New("curve.svg").Parse(pictureText)
	if err != nil {
		return err
	}
	list := panels(d)
	return t.Execute(w, map[string]any{
		"Title": d.Name, "Of": d.Of, "Panels": list, "PanelWidth": panelWidth, "PanelHeight": panelHeight,
		"Width": min(2, len(list)) * cellWidth, "Height": (len(list) + 1) / 2 * cellHeight,
	})
}

// panel is one figure over all sizes.
type panel struct {
	Left, Top int // of the axes
	Name      string
	Line      string // the points, as SVG has them
	Dots      []dot
}

// dot is a point of a panel.
type dot struct {
	X, Y       float64
	Size, Text string
}

func panels(d drawn) []panel {
	var list []panel
	if len(d.Points) == 0 {
		return nil
	}
	for i, figure := range d.Points[0].Values {
		p := panel{Left: i%2*cellWidth + panelLeft, Top: i/2*cellHeight + panelTop, Name: figure.Name + ", " + figure.Unit}
		greatest := 0.0
		for _, at := range d.Points {
			greatest = max(greatest, at.Values[i].Value)
		}
		var line []string
		for k, x := range places(d.Points) {
			v := d.Points[k].Values[i].Value
			y := float64(panelHeight)
			if greatest > 0 {
				y -= panelHeight * max(0, v) / greatest
			}
			p.Dots = append(p.Dots, dot{X: x, Y: y, Size: short(d.Points[k].Size), Text: number(v)})
			line = append(line, strconv.FormatFloat(x, 'f', 1, 64)+","+strconv.FormatFloat(y, 'f', 1, 64))
		}
		p.Line = strings.Join(line, " ")
		list = append(list, p)
	}
	return list
}

// places are where the points are on the axis of sizes, with some room at both ends. 0 has no logarithm: it is one decade
// before the next.
func places(points []point) []float64 {
	logs := make([]float64, len(points))
	for i, p := range points {
		logs[i] = math.Log10(float64(p.Size))
	}
	if points[0].Size == 0 {
		logs[0] = 0
		if len(logs) > 1 {
			logs[0] = logs[1] - 1
		}
	}
	const margin = 30
	first, last := logs[0], logs[len(logs)-1]
	for i, l := range logs {
		logs[i] = panelWidth / 2
		if last > first {
			logs[i] = margin + (panelWidth-2*margin)*(l-first)/(last-first)
		}
	}
	return logs
}

// short is a size in few characters.
func short(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return strconv.Itoa(n/1_000_000) + "M"
	case n >= 1000 && n%1000 == 0:
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n)
}
