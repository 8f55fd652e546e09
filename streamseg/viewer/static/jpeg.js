// Size of a JPEG image, read from its header before memory for the pixels is allocated.

const FRAME_HEADERS = new Set([0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf]);

// Return [height, width] from the first frame header (ITU-T T.81, B.2.2).
export function jpegSize(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let offset = 2; // after the start-of-image marker
  while (offset + 9 <= view.byteLength && view.getUint16(0) === 0xffd8 && view.getUint8(offset) === 0xff) {
    if (FRAME_HEADERS.has(view.getUint8(offset + 1))) {
      return [view.getUint16(offset + 5), view.getUint16(offset + 7)];
    }
    offset += 2 + view.getUint16(offset + 2);
  }
  throw new Error("not a JPEG");
}
