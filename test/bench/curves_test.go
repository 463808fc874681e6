package main

import (
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
)

// drawing is a curve of two figures, with characters that XML has other uses for.
func drawing() drawn {
	d := drawn{Name: "instances", Of: "instances <of> regd"}
	for i, size := range []int{0, 1000, 100_000, 1_000_000} {
		d.Points = append(d.Points, point{Size: size, Values: []measured{
			{Name: "reads & writes", Unit: "/s", Value: 4000 - 900*float64(i)},
			{Name: "save", Unit: "s", Value: float64(i) * 1.5},
		}})
	}
	return d
}

func TestAPictureIsWellFormedAndHasAllLabels(t *testing.T) {
	var svg strings.Builder
	if err := picture(&svg, drawing()); err != nil {
		t.Fatal(err)
	}
	var texts []string
	lines := 0
	for decoder := xml.NewDecoder(strings.NewReader(svg.String())); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg.String())
		}
		switch e := token.(type) {
		case xml.CharData:
			texts = append(texts, string(e))
		case xml.StartElement:
			if e.Name.Local == "polyline" {
				lines++
			}
		}
	}
	all := "|" + strings.Join(texts, "|") + "|"
	for _, want := range []string{
		"reads & writes, /s", "save, s", "instances <of> regd", "0", "1k", "100k", "1M", "4000", "3100", "2200", "1300", "1.5", "3", "4.5",
	} {
		if !strings.Contains(all, "|"+want+"|") {
			t.Errorf("no text %q in %s", want, all)
		}
	}
	if lines != 2 {
		t.Errorf("%d lines, want one for each of two figures", lines)
	}
	if !strings.Contains(svg.String(), "currentColor") {
		t.Error("text and axes must have the colour of where they stand")
	}
}

func TestAFigureIsDrawnFromZeroToItsGreatestOverALogarithmicAxis(t *testing.T) {
	dots := panels(drawing())[0].Dots
	if dots[0].Y != 0 || dots[3].Y != panelHeight-panelHeight*1300/4000.0 {
		t.Errorf("heights of the first and the last: %v, %v", dots[0].Y, dots[3].Y)
	}
	// 0 is a decade before 1000, which is two before 100,000, and that is one before 1,000,000.
	decade := (dots[3].X - dots[0].X) / 4
	for i, want := range []float64{0, 1, 3, 4} {
		if got := (dots[i].X - dots[0].X) / decade; got < want-0.001 || got > want+0.001 {
			t.Errorf("point %d stands at %v decades, want %v", i, got, want)
		}
	}
}

func TestACurveOfOnePointOrOfNothingButZerosIsDrawnToo(t *testing.T) {
	for _, size := range []int{0, 1, 1000} {
		d := drawn{Name: "one", Of: "things", Points: []point{{Size: size, Values: []measured{{Name: "none", Unit: "s"}}}}}
		var svg strings.Builder
		if err := picture(&svg, d); err != nil || strings.Contains(svg.String(), "NaN") || strings.Contains(svg.String(), "Inf") {
			t.Errorf("size %d: %v\n%s", size, err, svg.String())
		}
	}
}

func TestACurveIsATable(t *testing.T) {
	var text strings.Builder
	drawing().markdown(&text)
	for _, want := range []string{
		"| instances <of> regd | reads & writes | save |", "| --- | --- | --- |", "| 100000 | 2200 /s | 3 s |",
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, text.String())
		}
	}
}

func TestCurvesAreChosenByNameAndSize(t *testing.T) {
	if list := chosen(curves(), nil, 1_000_000); len(list) != 0 {
		t.Errorf("%d curves are chosen by nothing", len(list))
	}
	list := chosen(curves(), regexp.MustCompile("^instances$"), 10_000)
	if len(list) != 1 || len(list[0].sizes) != 2 || list[0].sizes[1] != 10_000 {
		t.Errorf("chosen: %+v; want instances at 1000 and 10000", list)
	}
}

func TestMetadataIsFilledUpToItsSize(t *testing.T) {
	for _, want := range []int{100, 1000, 4000} {
		size := 0
		for key, v := range described(instance{version: 1234567}, want).GetMetadata() {
			if len(v) > 512 {
				t.Errorf("a value of %d bytes is longer than the API takes", len(v))
			}
			size += len(key) + len(v)
		}
		if size < want || size > want+2 {
			t.Errorf("%d bytes of metadata, want %d", size, want)
		}
	}
}
