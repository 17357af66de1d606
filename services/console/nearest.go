package console

import "strings"

// nearest returns the word that differs least from the one written, or nothing
// if none is near: at most one edit in three letters. Of two that are equally
// near it returns the one that begins in the same way.
func nearest(written string, words []string) string {
	written = strings.ToLower(written)
	best, least, longest := "", max(1, len(written)/3), -1
	for _, w := range words {
		lower := strings.ToLower(w)
		common := 0
		for common < min(len(written), len(lower)) && written[common] == lower[common] {
			common++
		}
		if d := edits(written, lower); d < least || d == least && common > longest {
			best, least, longest = w, d, common
		}
	}
	return best
}

// edits counts insertions, deletions and substitutions.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
