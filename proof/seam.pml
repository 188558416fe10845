/* From replay to live: one client that comes back, the pages of what it missed, the recent records, its mark, and live
 * delivery, with cuts of the connection anywhere.
 *
 * The log grows in order, and the node's cursor passes one record after the other: the model of append and cursor
 * shows that. The client begins live and in a room. Some events are for everybody, some for the room. Somebody may take
 * the client out of the room at any time, and so may the connect handler of a recovery.
 *
 * Everything inside of d_step { } is one statement of the database, or one tick of the node's event loop.
 */
#define holds(name, condition) assert(condition)
#define bit(o) (1 << (o))

#define LAST 6                /* the highest offset */
#define EVENTS 3              /* how many events there are at most */
#define CUTS 2                /* how often the connection breaks */
#define PAGE 1                /* events of a page. In the code 500 */
#define RECENT 1              /* records that the node keeps in memory. In the code 4,000 events */
#define NEVER 15              /* above all offsets */

mtype = { an_event_for_everybody, an_event_for_the_room, a_leave, a_claim }
mtype = { away, connecting, replaying, live }

/* -- the database ------------------------------------------------------------------------------------------ */
mtype kind[LAST + 1];         /* the log */
byte as_of[LAST + 1];         /* the offset from which a leave counts */
byte head = 0;                /* the last record */
byte left_at = NEVER;         /* the row of the membership: where it ended */

/* -- the node ---------------------------------------------------------------------------------------------- */
byte cursor = 0;
bool open = true;             /* the client's connection */
mtype state = live;
byte sent = 0;                /* the client's mark */
byte left_in_memory = NEVER;  /* the membership, as of the cursor */
chan wire = [LAST] of { byte };

/* -- the client -------------------------------------------------------------------------------------------- */
byte got = 0;                 /* the last offset that it received, which it presents */
byte cuts = 0;
byte left = NEVER;            /* where it left the room, as the guarantees have it */

#define was_due(o) (kind[o] == an_event_for_everybody || (kind[o] == an_event_for_the_room && o < left))
#define is_due(o, end) (kind[o] == an_event_for_everybody || (kind[o] == an_event_for_the_room && o < end))
#define is_due_now(o) (kind[o] == an_event_for_everybody || (kind[o] == an_event_for_the_room && left_in_memory == NEVER))
#define covered(position) (cursor <= position + RECENT)

inline append(what) {
    head++; kind[head] = what; as_of[head] = head;
    printf("%d is appended: %e\n", head, what)
}

inline send(o) {
    if :: open -> wire!o :: else fi;
    sent = o;
    printf("the node sends %d\n", o)
}

inline leave_in_memory(o) {
    if :: as_of[o] < left_in_memory -> left_in_memory = as_of[o] :: else fi
}

proctype emitters() {
    byte events = 0;
    do
    :: d_step { events < EVENTS && head < LAST -> events++; append(an_event_for_everybody) }
    :: d_step { events < EVENTS && head < LAST -> events++; append(an_event_for_the_room) }
    :: d_step { left_at == NEVER && head < LAST -> append(a_leave); left_at = head; left = head }
    :: break
    od
}

/* Only a live client is sent events from here. */
proctype delivery() {
end:
    do
    :: d_step {
        cursor < head ->
        cursor++;
        printf("the cursor passes %d\n", cursor);
        if
        :: kind[cursor] == a_leave && state != away -> leave_in_memory(cursor)
        :: else ->
            if :: state == live && cursor > sent && is_due_now(cursor) -> send(cursor) :: else fi
        fi
      }
    od
}

inline read_page(above) {     /* the next events above a mark that the client is due, and how far they reach */
    o = above + 1; upto = head;
    do
    :: o <= head && count < PAGE -> if :: is_due(o, left_at) -> page = page | bit(o); count++; last = o :: else fi; o++
    :: else -> break
    od;
    if :: count == PAGE -> upto = last :: else fi;
    o = 0; count = 0; last = 0
}

inline send_page() {
    o = 1;
    do
    :: o <= LAST -> if :: page & bit(o) -> send(o) :: else fi; o++
    :: else -> break
    od;
    if :: upto > sent -> sent = upto :: else fi;
    o = 0; page = 0; upto = 0
}

inline catch_up() {
    o = (covered(sent) -> sent : cursor - RECENT) + 1;
    do
    :: o <= cursor -> if :: is_due(o, left_in_memory) -> send(o) :: else fi; o++
    :: else -> break
    od;
    if :: cursor > sent -> sent = cursor :: else fi;
    o = 0
}

inline check() {
    if :: !open -> goto gone :: else fi
}

proctype connection() {
    byte after, claimed, page, upto, o, count, last;
    bool in_memory, same_tick;
end:
    do
    :: d_step {
        !open && cuts > 0 && head < LAST ->
        open = true; after = got; in_memory = covered(after);
        printf("the client comes back and presents %d\n", after)
      };
      d_step {                /* the claim reads the membership, and the first page if the node does not have it */
        if
        :: head < LAST -> append(a_claim); claimed = head
        :: else -> open = false  /* the log of this model is full */
        fi;
        left_in_memory = left_at;
        if :: !in_memory -> read_page(after) :: else fi
      };
      check();
      d_step {                /* the records between the claim and the cursor */
        cursor >= claimed || !open ->
        sent = after; state = connecting; same_tick = true;
        o = claimed;
        do
        :: o <= cursor -> if :: kind[o] == a_leave -> leave_in_memory(o) :: else fi; o++
        :: else -> break
        od;
        o = 0;
        printf("the node has passed the claim\n")
      };
      if
      :: skip                 /* the connect handler returns at once */
      :: same_tick = false    /* it waits for something */
      :: d_step {             /* it leaves the room, and waits until the cursor has passed that */
          head < LAST && left_at > after ->
          same_tick = false;
          append(a_leave); as_of[head] = after; claimed = head; left_at = after; left = after;
          printf("the connect handler leaves the room as of %d\n", after)
        };
        (cursor >= claimed || !open)
      fi;
      check();
      if
      :: d_step {
          same_tick && (!in_memory || covered(sent)) ->
          state = replaying;
          printf("the node sends CONNECT, and the page of the claim\n");
          send_page()
        }
      :: d_step {
          else ->
          page = 0; upto = 0;
          read_page(sent);
          printf("a page is read\n")
        };
        check();
        d_step { state = replaying; printf("the node sends CONNECT\n"); send_page() }
      fi;
      same_tick = false;
      do
      :: d_step {
          open && covered(sent) ->
          catch_up(); state = live;
          printf("the client is live\n")
        };
end_live:
        !open -> break
      :: d_step { open && !covered(sent) && empty(wire) -> read_page(sent); printf("a page is read\n") };
        check();
        d_step { send_page() }
      :: !open -> break
      od;
gone: skip;
      d_step {
        state = away; page = 0; upto = 0; after = 0; claimed = 0; same_tick = false; in_memory = false; sent = 0;
        left_in_memory = NEVER
      }
    od
}

proctype client() {
    byte o, i;
end:
    do
    :: d_step {
        open && nempty(wire) ->
        wire?o;
        printf("the client receives %d\n", o);
        holds(once_in_order, o > got);
        holds(nothing_undue, was_due(o));
        i = got + 1;
        do
        :: i < o -> holds(nothing_lost, !was_due(i)); i++
        :: else -> break
        od;
        i = 0;
        got = o; o = 0
      }
    :: d_step {
        open && cuts < CUTS ->
        cuts++; open = false;
        if :: state == live -> state = away :: else fi;
        do :: nempty(wire) -> wire?o :: empty(wire) -> break od;
        o = 0;
        printf("the connection breaks\n")
      }
    od
}

init {
    byte i;
    atomic { run emitters(); run delivery(); run connection(); run client() };
    timeout ->
    if
    :: open && state == live ->
        d_step {
            i = got + 1;
            do
            :: i <= head -> holds(nothing_lost, !was_due(i)); i++
            :: else -> break
            od
        }
    :: else
    fi
}
