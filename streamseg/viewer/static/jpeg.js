// How large a JPEG says that it is, before anybody takes memory for it.

const FRAME_HEADERS = new Set([0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf]);

// [height, width] from the first frame header (ITU-T T.81, B.2.2).
export function jpegSize(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 2; // after the mark of the beginning
  while (at + 9 <= view.byteLength && view.getUint16(0) === 0xffd8 && view.getUint8(at) === 0xff) {
    if (FRAME_HEADERS.has(view.getUint8(at + 1))) return [view.getUint16(at + 5), view.getUint16(at + 7)];
    at += 2 + view.getUint16(at + 2);
  }
  throw new Error("not a JPEG");
}
