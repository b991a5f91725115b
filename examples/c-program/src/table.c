#include "table.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    char *word;
    size_t count;
};

struct table {
    struct slot *slots;
    size_t capacity; /* a power of two */
    size_t size;
};

static void *allocated(void *memory)
{
    if (memory == NULL) {
        fputs("tally: out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

static uint64_t hash(const char *word)
{
    uint64_t value = UINT64_C(14695981039346656037);
    for (; *word != '\0'; word++)
        value = (value ^ (unsigned char)*word) * UINT64_C(1099511628211);
    return value;
}

/* The slot of a word, or the empty one where it belongs. */
static struct slot *find(const struct table *table, const char *word)
{
    size_t at = hash(word) & (table->capacity - 1);
    while (table->slots[at].word != NULL && strcmp(table->slots[at].word, word) != 0)
        at = (at + 1) & (table->capacity - 1);
    return &table->slots[at];
}

static void grow(struct table *table)
{
    struct table wider = {NULL, table->capacity * 2, table->size};
    wider.slots = allocated(calloc(wider.capacity, sizeof *wider.slots));
    for (size_t at = 0; at < table->capacity; at++)
        if (table->slots[at].word != NULL)
            *find(&wider, table->slots[at].word) = table->slots[at];
    free(table->slots);
    *table = wider;
}

struct table *table_new(void)
{
    struct table *table = allocated(malloc(sizeof *table));
    table->capacity = 64;
    table->size = 0;
    table->slots = allocated(calloc(table->capacity, sizeof *table->slots));
    return table;
}

void table_free(struct table *table)
{
    for (size_t at = 0; at < table->capacity; at++)
        free(table->slots[at].word);
    free(table->slots);
    free(table);
}

void table_add(struct table *table, const char *word)
{
    struct slot *slot = find(table, word);
    if (slot->word == NULL) {
        if (table->size * 2 >= table->capacity) {
            grow(table);
            slot = find(table, word);
        }
        slot->word = allocated(strdup(word));
        table->size++;
    }
    slot->count++;
}

size_t table_size(const struct table *table)
{
    return table->size;
}

size_t table_count(const struct table *table, const char *word)
{
    return find(table, word)->count;
}

static int by_rank(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->word, b->word);
}

struct entry *table_ranked(const struct table *table)
{
    struct entry *ranked = allocated(calloc(table->size + 1, sizeof *ranked));
    size_t next = 0;
    for (size_t at = 0; at < table->capacity; at++)
        if (table->slots[at].word != NULL)
            ranked[next++] = (struct entry){table->slots[at].word, table->slots[at].count};
    qsort(ranked, next, sizeof *ranked, by_rank);
    return ranked;
}
