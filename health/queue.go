package health

import (
	"container/heap"
	"time"
)

// slot is the place of an item in a [queue]. The zero value is in none.
type slot struct {
	at       time.Duration // When the item is due, by the clock of its owner.
	position int           // From 1; 0: in no queue.
}

func (s *slot) place() *slot { return s }

// queue is a heap of items by the time at which they are due, to be used through container/heap, set and remove.
type queue[T interface{ place() *slot }] []T

func (q queue[T]) Len() int           { return len(q) }
func (q queue[T]) Less(i, j int) bool { return q[i].place().at < q[j].place().at }

func (q queue[T]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place().position, q[j].place().position = i+1, j+1
}

// Push is for container/heap.
func (q *queue[T]) Push(x any) {
	item := x.(T)
	*q = append(*q, item)
	item.place().position = len(*q)
}

// Pop is for container/heap.
func (q *queue[T]) Pop() any {
	old := *q
	last := len(old) - 1
	item := old[last]
	var none T
	old[last] = none
	*q = old[:last]
	item.place().position = 0
	return item
}

// set puts item in the queue, or moves it, so that it is due at the given time.
func (q *queue[T]) set(item T, at time.Duration) {
	s := item.place()
	s.at = at
	if s.position == 0 {
		heap.Push(q, item)
		return
	}
	heap.Fix(q, s.position-1)
}

// remove takes item out of the queue if it is in it.
func (q *queue[T]) remove(item T) {
	if s := item.place(); s.position != 0 {
		heap.Remove(q, s.position-1)
	}
}
