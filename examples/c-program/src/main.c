/* tally FILE: the ten most frequent words of a text. */

#include <stdio.h>
#include <stdlib.h>

#include "table.h"
#include "words.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fputs("usage: tally FILE\n", stderr);
        return 2;
    }
    FILE *text = fopen(argv[1], "r");
    if (text == NULL) {
        perror(argv[1]);
        return 1;
    }
    struct table *table = table_new();
    count_words(table, text);
    fclose(text);
    struct entry *ranked = table_ranked(table);
    for (size_t at = 0; at < table_size(table) && at < 10; at++)
        printf("%6zu  %s\n", ranked[at].count, ranked[at].word);
    free(ranked);
    table_free(table);
    return 0;
}
