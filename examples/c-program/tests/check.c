#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/table.h"
#include "../src/words.h"

static int failures;

#define CHECK(what)                                                     \
    do {                                                                \
        if (!(what)) {                                                  \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);   \
            failures++;                                                 \
        }                                                               \
    } while (0)

static struct table *counted(const char *text)
{
    struct table *table = table_new();
    FILE *file = fmemopen((void *)text, strlen(text), "r");
    count_words(table, file);
    fclose(file);
    return table;
}

static void words_are_runs_of_letters(void)
{
    struct table *table = counted("It's a dog's life, isn't it? 'Yes', IT is.");
    CHECK(table_count(table, "it") == 2);
    CHECK(table_count(table, "it's") == 1);
    CHECK(table_count(table, "yes") == 1);
    CHECK(table_count(table, "cat") == 0);
    CHECK(table_size(table) == 8);
    table_free(table);
}

static void the_most_frequent_come_first(void)
{
    struct table *table = counted("b a c a b d a");
    struct entry *ranked = table_ranked(table);
    const char *expected[] = {"a", "b", "c", "d"};
    for (size_t at = 0; at < 4; at++)
        CHECK(strcmp(ranked[at].word, expected[at]) == 0);
    CHECK(ranked[0].count == 3);
    free(ranked);
    table_free(table);
}

static void the_table_grows(void)
{
    struct table *table = table_new();
    char word[16];
    for (int round = 0; round < 3; round++)
        for (int number = 0; number < 5000; number++) {
            snprintf(word, sizeof word, "w%d", number);
            table_add(table, word);
        }
    CHECK(table_size(table) == 5000);
    CHECK(table_count(table, "w4999") == 3);
    table_free(table);
}

int main(void)
{
    words_are_runs_of_letters();
    the_most_frequent_come_first();
    the_table_grows();
    puts(failures == 0 ? "all checks passed" : "checks failed");
    return failures != 0;
}
