/** What goes over the wire: `GET /events`, and what the page reads of `/predict` and `/status`. */

/** Where an estimate or a difference lies, 0 to 1 or -1 to 1; low to high is a 90 % interval. */
export interface Interval {
  accuracy: number;
  low: number;
  high: number;
}

export interface Act {
  /** Seconds since 1970. */
  time: number;
  /** hold, release, roll_back or reset. */
  action: string;
  /** suspicion, harm, gain, no_gain, by_hand or failure. */
  reason: string;
  /** Told by `--guard observe`, and not done. */
  observed?: boolean;
}

export type Mode = "source" | "adapting" | "settled" | "held" | "rolled_back";

/** One camera's stream. Times are seconds since 1970. */
export interface Row {
  name: string;
  /** False: it is saved and doubted, or silent; what is not known of it is null. */
  in_memory: boolean;
  last_image: number | null;
  images: number | null;
  /** Images that looked like a faulty camera's, by kind. */
  suspects: Record<string, number>;
  /** The kind of fault while the camera is at fault. */
  suspect: string | null;
  mode: Mode | null;
  doubted_since: number | null;
  held_since: number | null;
  silent_since: number | null;
  /** Optimizer steps since the start or the last reset. */
  version: number | null;
  drift: number | null;
  estimate: { adapted: Interval; source: Interval; gain: Interval } | null;
  truth: { labelled: number; correct: number } | null;
  guard: Act | null;
  /** 3 held or failing now, 2 doubted, silent or failing lately, 1 rolled back or worse, 0 none. */
  trouble: number;
  /** The trouble in a sentence. */
  why: string | null;
}

/** What happened; other fields depend on the kind. */
export interface Happening {
  time: number;
  event: string;
  stream?: string;
  [field: string]: unknown;
}

/** Only grow while the process lives; `request_seconds_buckets` are cumulative counts. */
export type Counters = { [name: string]: number | number[] };
export type Gauges = { [name: string]: number | boolean | null };

export interface Tick {
  time: number;
  counters: Counters;
  gauges: Gauges;
  events: Happening[];
  streams: Row[];
  gone?: string[];
  /** Streams that are not among the rows: there are too many. */
  left_out?: number;
}

export interface State extends Tick {
  /** When this process was ready; another number: it was restarted. */
  started: number;
  version: string;
  /** Of which the live page is: what was loaded before is old once it is another. */
  page: string;
  model: { name: string; digest: string | null; classes: number };
  method: string;
  adapt: string;
  asks: { predict: boolean; control: boolean };
  guard: string;
  /** Seconds between points of history. */
  interval: number;
  history: { [name: string]: (number | boolean | null | number[])[] };
  latency_bounds: (number | null)[];
}

export interface Score {
  class: number;
  name: string;
  /** Probability, 0 to 1. */
  confidence: number;
}

export interface Answer {
  stream: string;
  method: string;
  context: boolean;
  version: number | number[];
  model_digest: string | null;
  predictions: (Score & {
    top_k: Score[];
    entropy: number;
    selected: boolean;
    mode: Mode;
    suspect: string | null;
    shed: string | null;
  })[];
}

export interface Snapshots {
  stream: string;
  snapshots: { version: number; images: number }[];
  /** Why it cannot be brought back now. */
  unavailable: string | null;
}

export interface Status {
  model: { [name: string]: unknown };
  device: string;
  settings: {
    method: { [name: string]: unknown };
    server: { [name: string]: unknown };
    sources?: { [name: string]: { source: string; name: string | null } };
  };
  versions: { [name: string]: string };
}
